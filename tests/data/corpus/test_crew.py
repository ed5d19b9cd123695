"""What a crew tells of its pace and of a job's end; and its processes, killed while they tokenise."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import psutil
import pytest

from pipeline.data.corpus import crew
from pipeline.data.damage import DamagedShard
from pipeline.errors import RegrowError
from pipeline.launch import die_with_parent
from tests.data.ahead import times
from tests.data.corpora import listing_of


class Divide:
    """A job: its number under 12; of 0 it is damage."""

    def __init__(self, number: int):
        self.name, self.size, self.number = f"job {number}", 1000, number


def prepare(top, tell):
    def divide(job):
        if job.number == 0:
            raise DamagedShard(f"{job.name} is damaged")
        if job.number > top:
            raise RegrowError(f"{job.name} is too much")
        tell("say", f"at {job.name}")
        return {"tokens": top // job.number}

    return divide


def run(numbers, said):
    jobs = [Divide(number) for number in numbers]
    return {
        job.number: outcome
        for job, outcome in crew.outcomes(crew.Crew(2, die_with_parent, said.append), jobs, prepare, (12,))
    }


def test_every_job_comes_back_with_what_became_of_it():
    said = []
    assert run([0, 1, 2, 3, 4], said) == {0: "job 0 is damaged", **{n: {"tokens": 12 // n} for n in (1, 2, 3, 4)}}
    assert {line for line in said if line.startswith("at")} == {f"at job {number}" for number in (1, 2, 3, 4)}
    assert said[-1].startswith("5 of 5 done: 25 tokens, "), said
    with pytest.raises(RegrowError, match="job 13 is too much"):
        run([13, 1], [])
    assert run([], []) == {}, "without a job there is nothing to start"


def test_progress_tells_speed_and_time_left(monkeypatch):
    lines = []
    pace = crew.Pace(4, 4000, lines.append)
    monkeypatch.setattr(crew, "EVERY", 0.0)

    class Done:
        name, size = "job", 1000

    halfway = [crew.Worker(None, Done(), tokens=500, share=0.5), crew.Worker(None, Done(), tokens=500, share=0.5)]
    pace.tell([])
    pace.begun -= 100
    pace.add(Done(), {"tokens": 1000})
    pace.tell(halfway)
    # 2,000 of 4,000 bytes and 2,000 tokens in 100 s.
    assert lines[-1] == "1 of 4 done: 2,000 tokens, 20 tokens/s, 0:01:40 left", lines


@pytest.fixture
def long_and_short(texts, shard_of, tmp_path):
    """A shard that takes some ten seconds to tokenise, and two of a moment."""
    shard_of("long.jsonl", [text for _ in range(30) for text in texts])
    for number in range(2):
        shard_of(f"short_{number}.jsonl.zst", texts[number : number + 20])
    return listing_of(str(tmp_path / "corpus")).shards


def wait_for_file(folder, pattern, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := list(folder.rglob(pattern)):
            return found
        time.sleep(0.02)
    raise AssertionError(f"no {pattern} in {folder} within {seconds} s")


def test_a_killed_process_is_an_error_that_names_it(long_and_short, tokenise, tmp_path):
    killed = []

    def kill():
        name = wait_for_file(tmp_path / "made", ".long*.new")[0].name
        wait_for_file(tmp_path / "made", "short_1*.tar")
        killed.append(int(name.split(".")[-2]))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(RegrowError) as error:
        tokenise(long_and_short, processes=2)
    thread.join()
    assert f"(pid {killed[0]}) ended with signal 9 while it had shard {long_and_short[0].name}" in str(error.value)
    assert not multiprocessing.active_children(), "the other process goes on"
    written = sorted(name.partition(".")[0] for name in times(tmp_path / "made"))
    assert written == ["short_0", "short_1"], f"what the other process had finished is {written}"
    assert not list((tmp_path / "made").rglob("*.new")), "the killed process's unfinished file was left"
    before = times(tmp_path / "made")
    assert tokenise(long_and_short[1:])[2] == ["2 of 2 shards were tokenised before"]
    assert times(tmp_path / "made") == before, "what was finished before the kill was done again"


def test_processes_end_with_the_one_that_started_them(long_and_short, tokenise, tmp_path):
    parent = multiprocessing.get_context("fork").Process(target=tokenise, args=(long_and_short,))
    parent.start()
    wait_for_file(tmp_path / "made", ".long*.new")
    children = psutil.Process(parent.pid).children(recursive=True)
    assert children, "nobody is tokenising"
    os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=10)
    parent.join()
    for child in alive:
        child.kill()
    assert not alive, f"these outlived their parent: {alive}"
    assert list((tmp_path / "made").rglob("*.new")), "an unfinished file is expected here"
    tokenise([])
    assert not list((tmp_path / "made").rglob("*.new")), "the next start leaves it lying"
