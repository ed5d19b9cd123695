"""Stages that were set aside, put back in place: what stands there now is set aside in the same move.

What comes back must have been made of what stands before it, and what stands behind it of what comes back; the former
is refused otherwise, the latter is set aside too. Each move leaves a run that is whole up to some stage, and nothing is
deleted: killed anywhere, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import STAGES, Config, completed, dump_config, load_written, recalled
from pipeline.errors import RegrowError
from pipeline.files import hash_json, read_json, write_atomic
from pipeline.fingerprints import compare_fingerprints
from pipeline.run import Run
from pipeline.stages.curve import held_curve, require_unjudged
from pipeline.stages.growing import earlier_outputs


class Former(Run):
    """A run as it was when stages of it were set aside into ``folder``: those, and the ones before them that stand."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._now = Run(folder.parent.parent)
        self._first = min((STAGES.index(stage) for stage in stages_in(folder)), default=len(STAGES))

    @property
    def name(self) -> str:
        return f"{self._now.name}, aside {self.folder.name}"

    def stage(self, name: str) -> Path:
        return self._now.stage(name) if STAGES.index(name) < self._first else super().stage(name)


def is_aside(folder: Path) -> bool:
    """Whether a folder is one of a run's asides."""
    return folder.parent.name == "aside" and (folder.parent.parent / "config.yaml").is_file()


def restore(run: Run, number: str, say: Callable[[str], None]) -> None:
    """Put the stages of an aside back, and ``say`` what moved and what config.yaml has again.

    RegrowError, with nothing moved, where there is no aside of that ``number``, where a command works in the run or in
    its chain, where a job judges its exports, and where what would come back was made of something else than what
    stands before it.
    """
    aside = _numbered(run, number)
    coming = stages_in(aside)
    if (chain := chain_of(run)) is not None:
        chain.require_free()

    def tell(line: str) -> None:
        run.log(f"restore: {line}")
        say(line)

    with run.lock(), held_curve(run):
        require_unjudged(run)
        standing, going = _sorted_out(run, aside, coming)
        before = load_written(run.folder / "config.yaml")
        after = _config_again(run, aside, standing, before)
        for folder in run.set_aside(going):
            tell(f"set aside in {folder}")
        write_atomic(run.folder / "config.yaml", dump_config(after))
        run.bring_back(aside, coming)
        for stage in coming:
            tell(f"restored {run.stage(stage)}")
        for line in compare_fingerprints({"config": before.values()}, {"config": after.values()}):
            tell(f"config.yaml has again {line}")
        for other in followers(run) if "train" in coming else ():
            tell(f"run {other.name} goes on from this one, and was made of what is set aside now")


def stages_in(folder: Path) -> list[str]:
    """The stages that have something in a run's folder, or in an aside of it, in their order."""
    return [stage for stage in STAGES if (folder / stage).is_dir() and any((folder / stage).iterdir())]


def made_from(folder: Path) -> Mapping[str, Any] | None:
    """The fingerprint of the stage in ``folder``, done or begun; None where it is neither."""
    record = Run(folder.parent).record(folder.name)
    if record is not None:
        return record["fingerprint"]
    begun = folder / "progress" / "started.json"
    return read_json(begun) if begun.exists() else None


def chain_of(run: Run) -> Run | None:
    """The folder of the chain that the run is a link of, by their names."""
    name, _, number = run.name.rpartition("-")
    chain = Run(run.folder.with_name(name)) if name and number.isdigit() else None
    return chain if chain and (chain.folder / "config.yaml").is_file() and not stages_in(chain.folder) else None


def followers(run: Run) -> Iterator[Run]:
    """The runs beside this one that have trained on from it."""
    for folder in sorted(run.folder.parent.iterdir()):
        then = made_from(folder / "train")
        after = then["config"].get("data.after") if then else None
        if after is not None and Path(after).resolve() == run.folder.resolve():
            yield Run(folder)


def _numbered(run: Run, number: str) -> Path:
    """The aside of that number."""
    if not (run.folder / "config.yaml").is_file():
        raise RegrowError(f"{run.folder}: not a run's folder (no config.yaml in it)")
    there = [aside for aside in run.asides() if stages_in(aside)]
    found = [aside for aside in there if number.isdecimal() and int(aside.name) == int(number)]
    if not found:
        listed = ", ".join(aside.name for aside in there)
        raise RegrowError(f"{run.folder}: nothing is set aside as {number}; there is {listed or 'nothing'}")
    return found[0]


def _sorted_out(run: Run, aside: Path, coming: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """The stages that will stand, with their folders as they are now, and the stages that are to be set aside."""
    standing: dict[str, Path] = {}
    going = []
    for number, stage in enumerate(STAGES):
        comes = stage in coming
        folder = aside / stage if comes else run.stage(stage)
        if not folder.is_dir():
            continue
        then = made_from(folder)
        # What stands before all that comes back is not touched, and what was judged of exports says nothing.
        asked = (comes and then is not None) or (not comes and number > STAGES.index(coming[0]))
        found = list(_misfits(stage, then, standing)) if asked else []
        if comes and found:
            remedy = _remedy(run, aside, _unmet(then, standing))
            raise RegrowError(f"{folder} does not fit what stands: {'; '.join(found)}{remedy}")
        if not found:
            standing[stage] = folder
        if comes or found:
            going.append(stage)
    return standing, going


def _misfits(stage: str, then: Mapping[str, Any] | None, standing: Mapping[str, Path]) -> Iterator[str]:
    """Why a stage of the fingerprint ``then`` does not go with those that stand before it, a phrase each."""
    if then is None:
        yield "it is neither done nor begun"
        return
    for earlier in _unmet(then, standing):
        done = earlier in standing and (standing[earlier] / "stage.json").exists()
        yield f"it was made of another {earlier}" if done else f"{earlier} is not done"
    values = completed(then["config"], stage)
    for earlier, folder in standing.items():
        others = completed((made_from(folder) or {"config": {}})["config"], earlier)
        shared = values.keys() & others.keys()
        yield from compare_fingerprints(*({"config": {key: of[key] for key in shared}} for of in (values, others)))


def _unmet(then: Mapping[str, Any], standing: Mapping[str, Path]) -> dict[str, str]:
    """The earlier stages that a stage was made of and that stand otherwise, or not at all, with their outputs' hash."""
    return {
        earlier: made
        for earlier, made in then["upstream"].items()
        if earlier not in standing or made not in _outputs(standing[earlier])
    }


def _outputs(folder: Path) -> set[str]:
    """Hashes of what the stage in ``folder`` has made, and of what that was before it grew; empty where it is not
    done."""
    record = Run(folder.parent).record(folder.name)
    return set() if record is None else {hash_json(record["outputs"]), *earlier_outputs(record)}


def _remedy(run: Run, aside: Path, wanted: Mapping[str, str]) -> str:
    """Which other aside holds what a stage was made of."""
    for other in run.asides():
        if other != aside and any(made in _outputs(other / earlier) for earlier, made in wanted.items()):
            return f"; restore {other.name} first, which holds what it was made of"
    return "; nothing else that is set aside holds what it was made of" if wanted else ""


def _config_again(run: Run, aside: Path, standing: Mapping[str, Path], now: Config) -> Config:
    """The config that the standing stages were made from; what none of them reads is as it was beside the aside."""
    kept = aside / "config.yaml"
    then = load_written(kept).model_copy(update={"run": now.run}) if kept.exists() else now
    made = {stage: made_from(folder) for stage, folder in standing.items()}
    return recalled(then, {stage: each["config"] for stage, each in made.items() if each is not None})
