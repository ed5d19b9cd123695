"""data-show: the rows that it reads again are those that the step was trained on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline.commands.show import shown_step
from pipeline.config import load_config
from pipeline.data.formats.documents import read_documents
from pipeline.data.shards import read_manifest
from pipeline.errors import RegrowError
from pipeline.files import read_json
from tests.command import Regrow

ROW = re.compile(r"\nrow (\d+), lane (\d+), \d+ documents, sha256 (\w+);")


def show(config: Path, step: int, characters: int = 300, *overrides: str) -> list[str]:
    return list(shown_step(load_config(config, list(overrides)), str(config), step, characters))


def rows_in(lines: list[str]) -> list[list]:
    found = [ROW.match(line) for line in lines]
    return [[int(row[1]), int(row[2]), row[3]] for row in found if row]


@pytest.fixture(scope="module")
def trained_on(logged: Path) -> dict[int, list]:
    """What the ranks of the run logged: step -> its rows."""
    lines = (logged.parent / "runs" / "tiny" / "train" / "samples.jsonl").read_text().splitlines()
    return {entry["step"]: entry["rows"] for entry in map(json.loads, lines)}


@pytest.fixture
def copied(logged: Path, tmp_path: Path) -> Path:
    """A copy of the run and its config."""
    folder = shutil.copytree(logged.parent, tmp_path / "copied")
    for path in folder.glob("*.yaml"):
        path.write_text(path.read_text().replace(str(logged.parent), str(folder)))
    return folder / logged.name


def test_it_shows_the_rows_of_the_step_from_the_checkpoint_before_it(logged, trained_on):
    read_before = {1: None, 2: "8 rows from step 0", 4: None, 6: "16 rows from step 3", 8: "8 rows from step 6"}
    for step, reading in read_before.items():
        lines = show(logged, step)
        assert lines[0] == f"step {step} of 8: rows {8 * step - 8} to {8 * step - 1} of 256 tokens"
        assert rows_in(lines) == trained_on[step], f"step {step} was trained on other rows than are shown"
        said = [line for line in lines if line.startswith("reading")]
        assert said == ([f"reading {reading} on, to get there"] if reading else [])


def test_without_checkpoints_it_reads_from_the_start_to_the_same_rows(copied, trained_on):
    shutil.rmtree(copied.parent / "runs" / "tiny" / "train")
    lines = show(copied, 8)
    assert "reading 56 rows from step 0 on, to get there" in lines
    assert rows_in(lines) == trained_on[8]


def test_the_text_is_that_of_the_corpus(logged):
    """At step 1 every lane begins a document; one that is cut says by how much."""
    manifest = read_json(logged.parent / "runs" / "tiny" / "data" / "manifest.json")
    begins = {
        text[:20]
        for shard in read_manifest(manifest)[0]
        for _, text in read_documents(Path(shard.place) / shard.path, shard.format)
    }
    whole, cut = show(logged, 1, 0), show(logged, 1, 20)
    first = [line for line in cut if line.startswith("  [0:")]
    assert len(first) == 8
    for line in first:
        text, _, more = line.partition("] ")[2].partition(" ... (")
        assert text.replace("\n    ", "\n") in begins, f"no document of the corpus begins with {text!r}"
        assert more.endswith(" characters more)"), "what was cut off is not counted"
    together = "".join(line.partition("] ")[2].replace("\n    ", "\n") for line in whole if line.startswith("  ["))
    assert len(together) > 8 * 256 and "characters more" not in together
    assert max(len(line) for line in cut if line.startswith("  [")) < 80


@pytest.mark.parametrize("step", [0, 9, -1])
def test_a_step_that_the_run_does_not_have_is_refused(logged, step):
    with pytest.raises(RegrowError, match=rf"--step {step}: the steps of this run are 1 to 8"):
        show(logged, step)


def test_a_position_in_another_stream_is_refused(copied):
    with pytest.raises(RegrowError, match=r"data\.lanes was 12, is 24"):
        show(copied, 4, 300, "data.lanes=24")
    assert rows_in(show(copied, 3, 300, "data.lanes=24")), "before the first checkpoint there is no position to refuse"


def test_a_run_without_its_manifest_names_the_command(logged):
    with pytest.raises(RegrowError, match=rf"first run: regrow run {logged} run\.name=none --until data"):
        show(logged, 1, 300, "run.name=none")


def test_of_instructions_it_shows_what_is_a_target(tiny_config, tmp_path):
    """Real prompts and responses: what is masked ends behind "### Response:", the response and EOS are the targets."""
    records = [
        {"instruction": "Name a colour.", "input": "", "output": "Blue is one."},
        {"instruction": "Add.", "input": "2 and 3", "output": "They make 5."},
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(records[k % 2]) + "\n" for k in range(64)))
    config = tiny_config.with_name("asked.yaml")
    source = f"{{path: {tmp_path / 'asked.jsonl'}, format: instruction}}"
    config.write_text(f"extends: {tiny_config.name}\ndata: {{sources: [{source}], held_out: null, row_length: 128}}\n")
    command = Regrow("run", config, "--until", "data")
    assert command.wait() == 0, command.output
    lines = "\n".join([*show(config, 1, 0), ""])
    pairs = re.findall(r"\[0:(\d+)\] no target: (.*?)\n  \[(\d+):\d+\] targets: (.*?)\n", lines, flags=re.DOTALL)
    assert len(pairs) == 8, lines
    for stop, prompt, start, response in pairs:
        assert stop == start
        assert prompt.rstrip().endswith("### Response:"), prompt
        assert any(response.startswith(one["output"]) for one in records), response
