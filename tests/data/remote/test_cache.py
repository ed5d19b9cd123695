"""The cache: copies are had ahead, shared by threads and processes, kept within a limit, and gone after use."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.data.damage import DamagedShard
from pipeline.data.formats.documents import read_documents
from pipeline.data.remote.cache import ShardCache
from pipeline.data.remote.space import require_cache_space
from pipeline.data.shards import Shard
from pipeline.errors import RegrowError


@pytest.mark.parametrize("number", range(5))
def test_a_remote_shard_comes_whole_and_goes(number, remote, server, cache, said, right):
    shard = remote(number)
    path = cache.open(shard)
    assert right(path, shard) and said == []
    assert len(list(read_documents(path, shard.format))) == 12 + number, "its name does not tell readers the format"
    assert (
        cache.open(shard) == path
        and server.bodies(f"/c/part_{number}.{shard.path.partition('.')[2].partition('?')[0]}") == 1
    )
    cache.drop(shard)
    assert path.exists(), "dropped while somebody else still reads it"
    cache.drop(shard)
    assert list(cache.folder.iterdir()) == [], "something is left of a shard that was dropped"


def test_a_copy_that_was_left_is_verified_before_it_is_used(remote, server, cache, tmp_path, right):
    shard = remote(1)
    path = cache.open(shard)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"X")
    later = ShardCache(tmp_path / "cache", say=lambda line: None)
    assert right(later.open(shard), shard), "a spoilt copy was handed out"
    later = ShardCache(tmp_path / "cache", say=lambda line: None)
    later.open(shard)
    assert server.bodies("/c/part_1.jsonl") == 2, "a good copy was fetched again"


def test_shards_are_fetched_ahead_in_the_background(remote, server, cache, said, right):
    shards = [remote(number) for number in range(5)]
    server.fail("/c/part_0.jsonl.zst", "flip", "flip")
    server.fail("/c/part_3.jsonl.gz", *["500"] * 5)
    for shard in shards:
        cache.ahead(shard)
    deadline = time.monotonic() + 20
    while len([path for path in cache.folder.iterdir() if path.suffix != ".part"]) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.requests.clear()
    for number in (1, 2, 4):
        assert right(cache.open(shards[number]), shards[number])
    assert server.requests == [], "what was fetched ahead was asked for again"
    with pytest.raises(DamagedShard, match="twice"):
        cache.open(shards[0])
    assert right(cache.open(shards[3]), shards[3]), "a failure in the background is final"
    assert any("part_3" in line and "waiting" in line for line in said)
    for shard in shards[1:]:
        cache.drop(shard)
    cache.drop(shards[0])
    while any(thread.name == "fetch ahead" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".sha256"], (
        "copies are left after their drops"
    )
    assert not any(thread.name == "fetch ahead" for thread in threading.enumerate()), "idle threads stay for ever"


def test_a_cache_travels_and_a_fork_begins_anew(remote, server, tmp_path):
    shard, other = remote(1), remote(4)
    cache = ShardCache(tmp_path / "cache", attempts=3, wait=0.001, stalled=0.5)
    path = cache.open(shard)
    # A download is under way, with its lock held, when the process forks.
    server.fail("/c/part_4.tar.gz", "stall")
    cache.ahead(other)
    server.wait_for_body("/c/part_4.tar.gz")
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.open(shard) == path
    copy.drop(shard)
    assert path.exists(), "the copy of a pickled cache deleted what the first one reads"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            cache.open(other)
            cache.ahead(shard)
            cache.open(shard)
            cache.drop(shard)
            status = 0 if path.exists() else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    if done[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done == (child, 0), "a forked child hung, failed, or deleted what its parent reads"
    cache.drop(shard)
    assert not path.exists(), "the last reader did not delete it"


WORKER = """
import json, sys
from pathlib import Path
from pipeline.data.remote.cache import ShardCache
from pipeline.data.shards import read_manifest
manifest, folder, rounds = json.loads(sys.stdin.readline()), Path(sys.argv[1]), int(sys.argv[2])
shards, _ = read_manifest(manifest)
cache = ShardCache(folder, attempts=3, wait=0.01, stalled=float(sys.argv[3]), say=lambda line: None)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(rounds):
    for shard in shards:
        cache.ahead(shard)
        assert cache.open(shard).stat().st_size == shard.bytes, shard.name
        cache.drop(shard)
print("done", flush=True)
"""


def start_worker(shards: list[Shard], folder: Path, rounds: int, stalled: float = 5.0) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(rounds), str(stalled)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(json.dumps({"shards": [asdict(shard) for shard in shards], "held_out": []}) + "\n")
    process.stdin.flush()
    return process


def test_processes_share_a_folder(remote, server, tmp_path):
    shards = [remote(number, hashed=number % 2 == 0) for number in range(3)]
    workers = [start_worker(shards, tmp_path / "cache", rounds=12) for _ in range(3)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 3
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        out, problems = worker.communicate(timeout=60)
        assert (worker.returncode, out) == (0, "done\n"), problems
    left = [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".sha256"]
    assert left == [], "copies or temporary files are left over after all have dropped theirs"


def test_what_a_killed_process_left_is_removed(remote, server, cache, tmp_path, right):
    shard = remote(1)
    server.fail("/c/part_1.jsonl", "stall")
    worker = start_worker([shard], tmp_path / "cache", rounds=1, stalled=30)
    with worker:
        worker.stdout.readline()
        worker.stdin.write("go\n")
        worker.stdin.flush()
        deadline = time.monotonic() + 20
        while not server.bodies("/c/part_1.jsonl") and time.monotonic() < deadline:
            time.sleep(0.01)
        other = remote(2)
        cache.open(other)
        assert len(list(cache.folder.glob("*.part"))) == 1, "the temporary file of a living process was removed"
        worker.kill()
    later = ShardCache(tmp_path / "cache", say=lambda line: None)
    later.ahead(other)
    later.open(other)
    assert not list(cache.folder.glob("*.part")), "the temporary file of a dead process stays for ever"
    assert right(later.open(shard), shard)


def copies(cache: ShardCache) -> set[str]:
    """What lies in the cache, by the numbers of the corpus's parts."""
    return {path.name.split("part_")[1][0] for path in cache.folder.iterdir() if path.suffix != ".sha256"}


def test_a_limit_is_kept_by_deleting_what_nobody_reads(remote, server, tmp_path, right):
    """Two caches over one folder, as two processes have them; room for two of the shards and no third one."""
    shards = [remote(number) for number in range(5)]
    assert min(shard.bytes for shard in shards) > 2000, "these shards are too small to tell their sum from one more"
    limit = shards[0].bytes + shards[1].bytes + 1000

    def limited() -> ShardCache:
        return ShardCache(tmp_path / "cache", limit=limit, attempts=2, wait=0.002, say=lambda line: None)

    left, one, other = limited(), limited(), limited()
    left.open(shards[4])
    del left  # As a process that was killed: its copy stays, and its lock is gone.
    one.open(shards[0])
    other.open(shards[1])
    assert copies(one) == {"0", "1"}, "the copy that nobody reads was not deleted, or one that is read was"
    with pytest.raises(RegrowError, match=r"no room for shard .*part_4.*data\.cache_size is .* raise it, or use fewer"):
        one.open(shards[4])
    one.ahead(shards[4])
    while any(thread.name == "fetch ahead" for thread in threading.enumerate()):
        time.sleep(0.005)
    assert copies(one) == {"0", "1"}, "a refused fetch left something"
    other.drop(shards[1])
    assert right(one.open(shards[4]), shards[4]), "what was refused once is refused for ever"
    assert copies(one) == {"0", "4"}


def test_a_fetch_under_way_counts_as_if_it_were_there(remote, server, tmp_path):
    slow, quick = remote(1), remote(4)
    limit = slow.bytes + quick.bytes - 1
    begun, second = (ShardCache(tmp_path / "cache", limit=limit, attempts=2, wait=0.002, stalled=5) for _ in range(2))
    server.fail("/c/part_1.jsonl", "stall")
    begun.ahead(slow)
    server.wait_for_body("/c/part_1.jsonl")
    with pytest.raises(RegrowError, match="no room for shard"):
        second.open(quick)


def test_what_others_put_into_the_folder_is_left_alone(remote, server, tmp_path):
    """Older than any copy, so the first to go; with it not one shard would have room."""
    shard = remote(1)
    folder = tmp_path / "cache"
    names = [
        "thesis.tex",
        "film.mkv.part",
        "film.900.part",
        "part_1.jsonl",
        "0123456789abcdef0123.jsonl",
        f"{'a' * 64}-x.tar.77.part",
        "deadbeef-3-x.parquet",
        "sub/0123456789abcdef0123-x.jsonl",
    ]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(10_000))
        os.utime(folder / name, (0, 0))
    copy = folder / "0123456789abcdef0123-7-x.parquet"
    left = folder / "0123456789abcdef0123-x.jsonl.800.part"
    for path in (copy, left):
        path.write_bytes(b"of a run that was killed")
    cache = ShardCache(folder, limit=shard.bytes, say=lambda line: None)
    cache.open(shard)
    assert [name for name in names if not (folder / name).exists()] == [], "a file of somebody else was deleted"
    assert not copy.exists() and not left.exists(), "what a cache left behind stays for ever"
    cache.drop(shard)
    assert require_cache_space(folder, [shard], 1) == 2 * shard.bytes
