"""Runs docs/notebook.ipynb anew, and stores what its cells say; Jupyter is not needed.

    python docs/notebook.py

Each code cell is carried out in its order, in one namespace and in this folder, as a kernel would. Kept are what it
printed, the value of its last line, and its pictures. Nothing of the machine stands in the file.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure

NOTEBOOK = Path(__file__).resolve().with_suffix(".ipynb")
#: Dots per inch of the pictures: the file is read in a browser, and lies in the repository.
DPI = 72


def outputs_of(cells: list[dict[str, Any]], parameters: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The outputs of each code cell, as nbformat 4 has them; ``parameters`` go before what the first one sets."""
    names: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        yield _carried_out("".join(cell["source"]), names, number)
        if number == 1:
            names |= parameters


def _carried_out(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    tree = ast.parse(source, f"cell {number}")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())})
    # What pyplot has drawn is shown at the end of a cell, whatever its last line is.
    for figure in map(pyplot.figure, pyplot.get_fignums()):
        outputs.append({"data": _picture(figure), "metadata": {}, "output_type": "display_data"})
    pyplot.close("all")
    if value is not None:
        data = _picture(value) if isinstance(value, Figure) else {"text/plain": _lines(repr(value))}
        outputs.append({"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"})
    return outputs


def _picture(figure: Figure) -> dict[str, Any]:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return {"image/png": base64.b64encode(drawn.getvalue()).decode() + "\n", "text/plain": ["<Figure>"]}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    pyplot.switch_backend("agg")
    os.chdir(NOTEBOOK.parent)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(code, outputs_of(notebook["cells"], {}), strict=True), start=1):
        cell["execution_count"], cell["outputs"] = number, outputs
        print(f"cell {number} of {len(code)}", flush=True)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
