"""The loader: one rank's rows through workers, whose errors and deaths come out as what they are."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pipeline.data.corpus.overlap import hash_text
from pipeline.data.damage import DamagedShard
from pipeline.data.formats.tokenised import write_tokenised
from pipeline.data.remote.cache import ShardCache
from pipeline.data.stream.loader import fitting_workers, load_rows
from pipeline.errors import RegrowError
from pipeline.launch import die_with_parent
from tests.data.corpora import (
    cursors_behind,
    differs,
    listing_of,
    row_stream,
    shard,
    stream,
    take,
    two_sources,
    write_shard,
)


@pytest.fixture
def corpus(texts, tmp_path):
    return two_sources(tmp_path / "corpus", texts, "jsonl")


def test_workers_are_lowered_to_a_number_that_divides(corpus, tmp_path):
    assert [fitting_workers(4, 12, processes) for processes in (1, 2, 3, 4, 6, 12)] == [4, 3, 4, 3, 2, 1]
    assert fitting_workers(0, 12, 3) == 0 and fitting_workers(4, 384, 8) == 4
    with pytest.raises(RegrowError, match="lanes 12 does not divide by 5 processes"):
        fitting_workers(4, 12, 5)
    with pytest.raises(RegrowError, match="lanes 12 does not divide by 5 processes"):
        stream(corpus, tmp_path, processes=5)
    with pytest.raises(RegrowError, match="5 workers in each of 1 processes do not divide 12 lanes"):
        next(load_rows(stream(corpus, tmp_path), 5, die_with_parent))


def test_what_a_worker_raises_comes_out_as_it_is(corpus, tmp_path):
    path = Path(corpus[2].name)
    path.write_bytes(path.read_bytes()[:-1])
    for workers in (0, 2):
        with pytest.raises(
            DamagedShard,
            match=r"^shard \S+a_02\.jsonl\.zst: \d+ bytes, the manifest says .*replaced: put back .*run\.name\)$",
        ):
            take(load_rows(stream(corpus, tmp_path), workers, die_with_parent), 2000)


def broken(text: str) -> list[int]:
    raise ZeroDivisionError("a defect")


def test_a_defect_in_a_worker_keeps_its_traceback(corpus, tmp_path):
    rows = row_stream(corpus, tmp_path, encode=broken, lanes=12)
    with pytest.raises(ZeroDivisionError, match=r"in broken"):
        next(load_rows(rows, 1, die_with_parent))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_is_an_error_that_names_it(corpus, tmp_path, workers):
    """Killed where it is most of the time: full of rows, in the middle of handing one over."""
    before = set(psutil.Process().children())
    rows = load_rows(stream(corpus, tmp_path, row_length=4096), workers, die_with_parent)
    take(rows, 2 * workers)
    time.sleep(0.3)
    own = [child for child in psutil.Process().children() if child not in before]
    victim = own[-1].pid
    os.kill(victim, signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(RegrowError, match=rf"data worker of rank 0 was killed \(pid {victim}\).*memory.*data\.workers"):
        take(rows, 100_000)
    rows.close()
    assert time.monotonic() - begin < 15, "a worker's death was noticed late"
    left = [child for child in own if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"orphans: {left}"


def test_a_worker_that_is_busy_when_no_more_rows_are_wanted_ends_without_a_signal(corpus, tmp_path):
    """Of the signal that torch ends workers with a rank would think that somebody asks it to stop."""
    signalled, slow, busy = (tmp_path / name for name in ("signalled", "slow", "busy"))

    def first() -> None:
        die_with_parent()
        signal.signal(signal.SIGTERM, lambda number, frame: signalled.touch())

    def encode(text: str) -> list[int]:
        if slow.exists():
            busy.touch()
            time.sleep(60)
        return list(text.encode())

    before = set(psutil.Process().children())
    rows = load_rows(row_stream(corpus, tmp_path, encode=encode, lanes=12), 1, first)
    take(rows, 1)
    slow.touch()
    begin = time.monotonic()
    while not busy.exists():
        # Full of rows, it goes on when one is taken.
        if time.monotonic() - begin > 3:
            take(rows, 1)
        time.sleep(0.05)
    (worker,) = set(psutil.Process().children()) - before
    start = time.monotonic()
    rows.close()
    gone, _ = psutil.wait_procs([worker], timeout=10)
    assert gone and time.monotonic() - start < 4.9, "the worker went on"
    assert not signalled.exists(), "it was sent SIGTERM"


def test_training_s_random_state_is_left_alone(corpus, tmp_path):
    before = torch.get_rng_state()
    take(load_rows(stream(corpus, tmp_path), 2, die_with_parent), 24)
    assert torch.equal(before, torch.get_rng_state()), "the loader draws from training's random numbers"


def test_memory_stays_flat_over_a_long_run(tmp_path):
    """Many epochs, many parts, two sources: neither this process nor its workers grow."""
    shards = []
    for number in range(24):
        path = tmp_path / "corpus" / f"{number}.tar"
        path.parent.mkdir(exist_ok=True)
        write_tokenised(path, np.arange(3000).reshape(-1, 15), about={"vocabulary": 60_000})
        shards.append(shard(path, number % 2, tokenised=True))
    tracemalloc.start()
    one = iter(stream(shards, tmp_path))
    take(one, 1500)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(3000):
        row = next(one)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert row.cursor.cursors[0].epoch > 2, "this test wants several epochs"
    assert grown < 100_000, f"{grown} bytes more after 3,000 rows"

    rows = load_rows(stream(shards, tmp_path), 2, die_with_parent)
    take(rows, 1000)
    family = [psutil.Process(), *psutil.Process().children()]
    sizes = [process.memory_info().rss for process in family]
    for _ in range(8_000):
        next(rows)
    grown = [process.memory_info().rss - size for process, size in zip(family, sizes, strict=True)]
    rows.close()
    assert max(grown) < 4 << 20, f"bytes more after 8,000 rows in this process and its workers: {grown}"


def test_many_lanes_may_open_more_files_than_the_system_s_default(tmp_path, texts):
    """In a process of its own, whose limit is low at first: every lane holds a file open."""
    import multiprocessing

    shards = [
        shard(write_shard(tmp_path / f"corpus/{n}.tar", texts[n : n + 2], tokenised=True), tokenised=True)
        for n in range(120)
    ]
    process = multiprocessing.get_context("fork").Process(target=_read_with_few_files, args=(shards, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == 0, "120 lanes could not be read by a process with a limit of 100 files"


def _read_with_few_files(shards, cache):
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    rows = iter(row_stream(shards, cache, lanes=120, row_length=8))
    assert len(take(rows, 240)) == 240
    assert len(list(Path("/proc/self/fd").iterdir())) > 100, "the lanes hold fewer files open than this test is for"


# ---- remote shards


def put(server, shards):
    """The same shards at a web server, as a listing without hashes has them: only row groups are counted."""
    far = []
    for each in shards:
        data = Path(each.name).read_bytes()
        server.files[f"/{each.path}"] = data
        far.append(
            replace(
                each,
                place=server.address,
                kind="url",
                sha256=None,
                documents=None,
                etag=f'"{hashlib.md5(data).hexdigest()}"',
            )
        )
    return far


def quiet(folder: Path) -> ShardCache:
    return ShardCache(folder, attempts=2, wait=0.01, say=lambda line: None)


@pytest.mark.parametrize("ending", ["jsonl.zst", "parquet"])
def test_remote_shards_give_the_same_rows_and_are_dropped(texts, tmp_path, server, ending):
    """Fetched ahead, a lane at a time, parquet by row groups; an epoch's copies never lie in the cache together."""
    short = [text[:150] for text in texts]
    # 24 parts: as many files, or three files of eight row groups.
    size = 6 if ending == "jsonl.zst" else 32
    local = [
        shard(write_shard(tmp_path / f"corpus/{n:02d}.{ending}", short[size * n : size * n + size], group=4))
        for n in range(24 if ending == "jsonl.zst" else 3)
    ]
    expected = take(iter(stream(local, tmp_path, lanes=3)), 900)
    assert min(row.cursor.cursors[0].epoch for row in expected[-3:]) >= 2, "this test wants the third epoch"
    far = put(server, local)
    cache = tmp_path / "cache"
    rows, copies = [], 0
    for row in stream(far, quiet(cache), lanes=3):
        rows.append(row)
        copies = max(copies, sum(path.name.endswith(ending) for path in cache.iterdir()))
        if len(rows) == 900:
            break
    assert differs(rows, expected) is None, differs(rows, expected)
    # Of each lane the part that is read, the one fetched ahead, and for a moment the one before.
    assert 3 <= copies <= 9, f"{copies} copies lay in the cache at a time, of 24 parts"
    for start, workers in ((301, 1), (600, 3)):
        cursors = cursors_behind(expected[:start])
        resumed = load_rows(stream(far, quiet(cache), lanes=3, start=start, cursors=cursors), workers, die_with_parent)
        found = differs(take(resumed, 60), expected[start : start + 60])
        assert found is None, f"resumed at {start} with {workers} workers: {found}"


def test_row_groups_that_are_cut_for_the_lanes_are_read_as_local_ones(texts, tmp_path, server):
    """More lanes than row groups: a lane has documents from the middle of one."""
    local = [shard(write_shard(tmp_path / f"corpus/{n}.parquet", texts[9 * n : 9 * n + 9], group=4)) for n in range(2)]
    expected = take(iter(stream(local, tmp_path)), 240)
    rows = take(iter(stream(put(server, local), quiet(tmp_path / "cache"))), 240)
    assert differs(rows, expected) is None, differs(rows, expected)


def test_a_server_s_refusal_is_no_damage(texts, tmp_path, server):
    local = [shard(write_shard(tmp_path / f"corpus/{n}.jsonl.zst", texts[9 * n : 9 * n + 6])) for n in range(4)]
    far = put(server, local)
    del server.files["/2.jsonl.zst"]
    with pytest.raises(RegrowError, match=r"2\.jsonl\.zst: the server answered 404") as refused:
        take(iter(stream(far, quiet(tmp_path / "cache"), lanes=2, on_damage="skip")), 400)
    assert not isinstance(refused.value, DamagedShard), "a file that is not there was taken for a damaged one"


def test_a_remote_shard_that_does_not_decode_is_skipped_whole(texts, tmp_path, server):
    local = [shard(write_shard(tmp_path / f"corpus/{n}.jsonl.zst", texts[9 * n : 9 * n + 6])) for n in range(4)]
    path = Path(local[2].name)
    data = path.read_bytes()
    path.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    far = put(server, local)
    with pytest.raises(DamagedShard, match=r"2\.jsonl\.zst"):
        take(iter(stream(far, quiet(tmp_path / "cache"), lanes=2)), 400)
    rows = take(iter(stream(far, quiet(tmp_path / "cache"), lanes=2, on_damage="skip")), 400)
    assert {part for row in rows for part in row.cursor.skipped} == {(0, 2, 0)}


def test_ids_of_another_tokenizer_are_refused_where_they_are_read(tmp_path):
    """A remote tokenised shard can be asked only when it has come: the reader asks it."""
    made = {"vocabulary": 1000, "tokenizer": "one", "bos": None, "separator": 1, "special_tokens": "plain"}
    write_tokenised(tmp_path / "ids" / "a.tar", [[2, 3, 1]] * 9, about=made)
    shards = listing_of(str(tmp_path / "ids")).shards
    settings = {"lanes": 1, "row_length": 4}
    assert next(iter(row_stream(shards, tmp_path / "cache", about=made, **settings))).input_ids.tolist() == [2, 3, 1, 2]
    with pytest.raises(RegrowError, match=r"a\.tar: tokenised with another separator \(it has 1, .* give 5\)"):
        next(iter(row_stream(shards, tmp_path / "cache", about={**made, "separator": 5}, **settings)))


@pytest.mark.parametrize("ending", ["jsonl.zst", "parquet"])
def test_remote_text_is_searched_for_held_out_documents_before_it_is_served(texts, tmp_path, server, ending):
    local = [shard(write_shard(tmp_path / f"corpus/{n}.{ending}", texts[9 * n : 9 * n + 9], group=4)) for n in range(4)]
    far = put(server, local)
    kept = {hash_text(texts[22]): "one of data.held_out"}
    for workers in (0, 2):
        rows = load_rows(stream(far, quiet(tmp_path / "cache"), lanes=4, held_out=kept), workers, die_with_parent)
        with pytest.raises(RegrowError, match=rf"2\.{ending}, document 4 \(held out as one of data\.held_out\)"):
            take(rows, 400)
    clean = stream(far, quiet(tmp_path / "cache"), lanes=4, held_out={hash_text("another"): "one of data.held_out"})
    assert differs(take(iter(clean), 100), take(iter(stream(local, tmp_path, lanes=4)), 100)) is None
