"""Draws docs/architecture.svg: the rooms of the package as the import contracts of setup.cfg have them, and the stages.

    python docs/architecture.py

Rooms stand above what they may import; what a room holds is said by its first line. Nothing of it is written twice, so
that the picture cannot lie: a test fails where it is not what this script draws.
"""

from __future__ import annotations

import ast
import re
from configparser import ConfigParser
from pathlib import Path
from textwrap import wrap

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
INK, PAPER, LINE, NOTE = "#1b1b1b", "#fbf7ef", "#9c8f7a", "#6b6152"
#: In units of the drawing, in which a line of text is 1 high and a character some 0.53 wide.
WIDTH, HOUSE, GAP, CHARACTER = 118.0, 72.0, 0.8, 0.53


def layers(contract: str) -> list[list[str]]:
    """The names in each layer of a contract of setup.cfg, the highest first."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config[f"importlinter:contract:{contract}"]["layers"].strip().splitlines()
    return [re.findall(r"\w+", line) for line in listed]


def first_line(package: Path, name: str) -> str:
    """What a room or a file says that it is: the first sentence of its docstring."""
    path = package / name / "__init__.py"
    source = (path if path.exists() else package / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].replace("\n", " ")


def stages() -> list[tuple[str, tuple[str, ...]]]:
    """Every stage in its order, with those that it builds on."""
    from pipeline.config import STAGES
    from pipeline.stages.stage import load_stage

    return [(name, load_stage(name).upstream) for name in STAGES]


class Drawing:
    """Boxes and titles on one sheet; ``tall`` grows with what is put on it."""

    def __init__(self, axes: Axes):
        self.axes, self.tall = axes, 0.0

    def title(self, left: float, top: float, text: str) -> None:
        """A heading whose line is at ``top``."""
        self.axes.text(left, top, text, fontsize=10, weight="bold", color=INK)

    def row(self, left: float, top: float, width: float, texts: dict[str, str]) -> float:
        """Boxes side by side, each a name and what it is; returns where the next row begins."""
        each = (width + GAP) / len(texts)
        told = {name: wrap(text, int((each - GAP - 1.2) / CHARACTER)) for name, text in texts.items()}
        height = 2.0 + max(map(len, told.values()))
        for number, (name, lines) in enumerate(told.items()):
            x = left + number * each
            self.axes.add_patch(Rectangle((x, top), each - GAP, height, facecolor=PAPER, edgecolor=LINE, linewidth=0.9))
            self.axes.text(x + 0.6, top + 1.2, name, fontsize=8.5, weight="bold", color=INK)
            for below, line in enumerate(lines):
                self.axes.text(x + 0.6, top + 2.4 + below, line, fontsize=7, color=NOTE)
        self.tall = max(self.tall, top + height)
        return top + height + GAP

    def rooms(self, left: float, top: float, width: float, rows: list[list[str]], package: Path) -> None:
        """Layers, the highest first."""
        for row in rows:
            top = self.row(left, top, width, {name: first_line(package, name) for name in row})

    def arrow(self, left: float, top: float, length: float) -> None:
        """From one box to the next."""
        style = {"arrowstyle": "->", "color": LINE, "linewidth": 1.2}
        self.axes.annotate("", (left + length, top), (left, top), arrowprops=style)


def draw(path: Path = PICTURE) -> None:
    """Write the picture as SVG."""
    rcParams.update({"svg.hashsalt": "regrow", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    sheet = Drawing(axes)

    sheet.title(1, 1.6, "What flows: each stage reads the folders of earlier ones, and writes its own")
    each = (WIDTH - 2 + 3) / len(stages())
    for number, (name, upstream) in enumerate(stages()):
        left = 1 + number * each
        below = sheet.row(left, 2.6, each - 3, {name: f"reads {', '.join(upstream) or 'the sources'}"})
        if number:
            sheet.arrow(left - 3, 4.4, 3)

    top = below + 2.2
    sheet.title(1, top - 0.8, "The house: a room may import the rooms below it")
    house = [[name for name in row if name != "__main__"] for row in layers("rooms")]
    sheet.rooms(1, top, HOUSE - 2, [row for row in house if row], ROOT / "pipeline")
    sheet.title(HOUSE + 2, top - 0.8, "Inside data, the same")
    sheet.rooms(HOUSE + 2, top, WIDTH - HOUSE - 3, layers("data"), ROOT / "pipeline" / "data")

    axes.set(xlim=(0, WIDTH), ylim=(sheet.tall + 1, 0))
    figure.set_size_inches(WIDTH / 10.5, (sheet.tall + 1) / 7.4)
    figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None, facecolor="white")


if __name__ == "__main__":
    draw()
