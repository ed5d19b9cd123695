"""What a crew tells of its pace, and what of a job's end; its processes are killed in test_tokenise."""

from __future__ import annotations

import pytest

from pipeline.data.corpus import crew
from pipeline.data.damage import DamagedShard
from pipeline.errors import RegrowError
from pipeline.launch import die_with_parent


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
