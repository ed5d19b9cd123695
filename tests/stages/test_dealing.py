"""``data.lanes: auto``: what stage data chooses and pins, what training takes, and what a plan can say of it."""

from __future__ import annotations

import json

from pipeline.commands.plan import plan
from pipeline.config import load_config
from pipeline.files import write_json
from pipeline.inputs import Inputs
from pipeline.launch import Place
from pipeline.run import Run
from pipeline.stages.dealing import known_lanes, lanes_for, training_processes
from tests.records import stage_record
from tests.stages.corpora import manifest, record, records, rows_of, write


def note(config) -> str:
    (line,) = [line for line in plan(config, ["data", "train"])["notes"] if "lanes" in line]
    return line


def test_the_number_is_chosen_pinned_and_kept_by_other_numbers_of_processes(
    here, refused, config_of, texts, tiny_model, tmp_path
):
    """50 documents: 48 lanes, which 3 processes read as 1 does, and 5 cannot."""
    write(tmp_path / "corpus" / "a.jsonl", records(texts[:50]))
    config = config_of([tmp_path / "corpus"], lanes="auto")
    before = note(load_config(config))
    assert "1,536 where every source has so many" in before and "data.sources.0" in before, before
    status, printed, message = here("data", config, "train.processes=2")
    assert status == 0, message
    assert "[data] data.lanes auto: 48\n" in printed, printed
    assert manifest(tmp_path)["lanes"] == record(tmp_path)["lanes"] == 48
    assert "48, as stage data chose" in note(load_config(config))

    message = refused("train", config, "train.processes=5", "train.global_batch=10")
    assert "data.lanes 48 does not divide by 5 processes" in message, message
    loaded = load_config(config, ["train.processes=3"])
    assert Inputs(loaded, Run(loaded.run_folder)).identity.lanes == 48
    assert {row[1] for row in rows_of(config)} == set(range(48))


def test_a_pinned_number_is_no_part_of_the_corpus_s_hash_and_gives_the_rows_of_a_stated_one(
    here, config_of, texts, tiny_model, tmp_path
):
    write(tmp_path / "corpus" / "a.jsonl", records(texts[:50]))
    config = config_of([tmp_path / "corpus"], lanes="auto")
    assert here("data", config)[0] == here("data", config, "run.name=stated", "data.lanes=48")[0] == 0
    auto, stated = manifest(tmp_path), manifest(tmp_path, "stated")
    assert auto == stated
    assert rows_of(config) == rows_of(config, "run.name=stated", "data.lanes=48")
    # As an earlier release left it.
    del stated["lanes"]
    write_json(tmp_path / "runs" / "stated" / "data" / "manifest.json", stated)
    assert len(rows_of(config, "run.name=stated", "data.lanes=48")) == 96


def test_a_corpus_too_small_for_the_processes_is_refused(refused, config_of, texts, tiny_model, tmp_path):
    write(tmp_path / "corpus" / "a.jsonl", records(texts[:3]))
    message = refused("data", config_of([tmp_path / "corpus"], lanes="auto"), "train.processes=4")
    assert "data source 0 allows at most 3 lanes, and 4 processes need one each" in message


def test_a_run_that_follows_another_has_its_lanes(config_of, texts, tmp_path):
    Run(tmp_path / "before").finish("train", stage_record())
    write_json(tmp_path / "before" / "train" / "position.json", {"identity": {"lanes": 6}})
    config = load_config(config_of([tmp_path / "c"], lanes="auto", after=str(tmp_path / "before")))
    assert lanes_for(config, []) == 6 and known_lanes(config) is None


def test_a_plan_knows_the_number_where_the_files_alone_are_enough(tiny_config, texts, tmp_path):
    (tmp_path / "corpus").mkdir()
    for number in range(1536):
        (tmp_path / "corpus" / f"{number}.jsonl").write_text(json.dumps({"text": texts[number % 900]}) + "\n")
    stated = [
        "data.lanes=auto",
        "data.sources.0.path=" + str(tmp_path / "corpus"),
        "data.held_out.path=" + str(tmp_path),
    ]
    config = load_config(tiny_config, stated)
    assert "data.lanes auto: 1,536; every source has so many shards" in note(config)
    assert "data.lanes auto: 960; every" in note(
        load_config(tiny_config, [*stated, "train.processes=5", "train.global_batch=10"])
    )


def test_the_launcher_s_processes_count_where_there_is_one(tiny_config):
    config = load_config(tiny_config)
    assert training_processes(config, Place(world=16, launcher="other")) == 16
    assert training_processes(config, Place()) == config.train.processes == 2
