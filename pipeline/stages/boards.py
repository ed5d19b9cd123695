"""The boards that a config asks for, beside a run's line files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec

from pipeline.config import Config
from pipeline.life import Teller
from pipeline.run import Run
from pipeline.training.boards import Board, Boards, TensorBoard, WeightsAndBiases
from pipeline.training.session import Session

#: Keys of train that ask for a board, by the package that each needs.
NEEDS = {"tensorboard": "train.tensorboard", "wandb": "train.wandb"}


def look_at_boards(config: Config) -> list[str]:
    """A line for each board whose package is missing: training does without it."""
    return [
        f"{NEEDS[package]}: the package {package} is not installed (pip install 'regrow[{package}]'); training goes on "
        "without it"
        for package in _asked_for(config)
        if find_spec(package) is None
    ]


@contextmanager
def shown_on_boards(config: Config, run: Run, session: Session, say: Teller) -> Iterator[None]:
    """Within the context the boards of a config are shown each line that the session writes."""
    if session.world.rank > 0:
        yield
        return
    folder, recipe = run.stage("train"), config.train
    about = {**recipe.model_dump(mode="json"), "row_length": config.data.row_length, "steps": config.steps}
    makers: dict[str, tuple[str, Callable[[], Board]]] = {
        "tensorboard": ("TensorBoard", partial(TensorBoard, folder / "tensorboard", session.position.step)),
        "wandb": ("Weights & Biases", partial(WeightsAndBiases, folder, recipe.wandb or "", run.name, about, say)),
    }
    # What is missing was said before any work began.
    boards = Boards(dict(makers[package] for package in _asked_for(config) if find_spec(package)), say)
    session.show = boards.add
    try:
        yield
    finally:
        boards.close()


def _asked_for(config: Config) -> list[str]:
    """The packages of the boards that a config asks for."""
    return [package for package in NEEDS if getattr(config.train, package)]
