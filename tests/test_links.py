"""Links that are cut without a word, between two hosts that are network namespaces."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.links import bound_silence
from tests import ROOT

#: Two processes that sum for ever; each says how many links it bounds, and the error that ends it.
PEER = """
import sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from pipeline.links import bound_silence
from pipeline.world import lost_peer

rank, seconds = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method="tcp://10.99.0.1:29511", rank=rank, world_size=2)
control = dist.new_group(backend="gloo", timeout=timedelta(days=1))
dist.barrier(control)
print("bound", bound_silence(seconds), flush=True)
try:
    while True:
        dist.all_reduce(torch.ones(1000), group=control)
        time.sleep(0.01)
except RuntimeError as error:
    print("lost:", lost_peer(error), flush=True)
"""


def test_connections_alone_are_bound():
    listening = socket.create_server(("127.0.0.1", 0))
    with listening, socket.create_connection(listening.getsockname()) as calling, listening.accept()[0] as called:
        assert bound_silence(40) >= 2
        for end in (calling, called):
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 40_000
            idle, between, probes = (
                end.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + between * probes == 40, "the other end may be silent for longer"
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        calling.sendall(b"still open")
        assert called.recv(16) == b"still open"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Three network namespaces: two hosts at 10.99.0.1 and 10.99.0.2, and the switch between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("needs root, ip and nsenter: test.sh as root on Linux with iproute2 and util-linux")
    names = [f"links-{os.getpid()}-{name}" for name in ("first", "second", "switch")]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[2], "link", "add", "bridge", "type", "bridge")
        ip("-n", names[2], "link", "set", "bridge", "up")
        for number, name in enumerate(names[:2], start=1):
            ip("link", "add", "wire", "netns", name, "type", "veth", "peer", "name", f"to{number}", "netns", names[2])
            ip("-n", names[2], "link", "set", f"to{number}", "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", "wire")
            for device in ("lo", "wire"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.mark.slow
def test_both_ends_of_a_link_that_is_cut_learn_of_it_in_time(hosts, tmp_path: Path):
    (tmp_path / "peer.py").write_text(PEER)
    seconds = 8
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "wire", "OMP_NUM_THREADS": "1"}
    peers = [
        subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{host}", sys.executable, str(tmp_path / "peer.py"), str(rank), str(seconds)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for rank, host in enumerate(hosts[:2])
    ]
    try:
        for peer in peers:
            assert int(peer.stdout.readline().split()[1]) >= 2
        begin = time.monotonic()
        ip("-n", hosts[2], "link", "set", "to1", "down")
        said = [peer.communicate(timeout=60)[0].strip() for peer in peers]
    finally:
        for peer in peers:
            peer.kill()
    assert time.monotonic() - begin < 3 * seconds, "it took longer than was bound, and as long again for this machine"
    for line in said:
        assert line in ("lost: connection timed out", "lost: no route to host")
