"""docker/Dockerfile.cpu, built without an engine and run: some ten minutes, and 8 GB of disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.cluster.conftest import require

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
BASE, IMAGE = "regrow-base", "regrow-cpu"
#: What the machine itself needs to reach packages: not to be baked into the image.
OF_THIS_MACHINE = ("/etc/ssl/certs", "/etc/pip.conf", "/etc/resolv.conf")


def buildah(*words: object, seconds: int = 1800) -> str:
    done = subprocess.run(
        ["buildah", "--storage-driver", "vfs", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
    )
    assert done.returncode == 0, f"buildah {words[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout.strip()


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    """An image of a minimal Debian with Python, made from packages."""
    require("buildah", "debootstrap", "tar")
    if shutil.disk_usage(tmp_path).free < 10e9:
        pytest.skip("needs 10 GB of disk: test.sh -m cluster where they are free")
    root = tmp_path / "root"
    packages = "python3,python3-venv,python3-dev,ca-certificates"
    made = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)]
    subprocess.run(made, check=True, capture_output=True, timeout=900)
    subprocess.run(["tar", "-C", str(root), "-cf", str(tmp_path / "root.tar"), "."], check=True)
    container = buildah("from", "scratch")
    buildah("add", container, tmp_path / "root.tar", "/")
    buildah("commit", container, BASE)
    yield f"localhost/{BASE}"
    buildah("rm", "--all")
    buildah("rmi", "--all", "--force")


@pytest.mark.timeout(3600)
def test_the_image_is_built_and_runs_as_a_user_in_a_container_whose_name_does_not_resolve(base):
    mounts = [f"--volume={place}:{place}:ro" for place in OF_THIS_MACHINE if Path(place).exists()]
    where = ("--isolation", "chroot", "--network", "host", *mounts)
    buildah("bud", *where, f"--build-arg=BASE_IMAGE={base}", "-f", "docker/Dockerfile.cpu", "-t", IMAGE, ".")
    container = buildah("from", f"localhost/{IMAGE}")
    run = ("run", "--isolation", "chroot", "--hostname", "nowhere", container, "--")
    assert buildah(*run, "id", "-u") == "1000"
    assert "Usage" in buildah(*run, "regrow", "--help")
    planned = buildah(*run, "regrow", "plan", "configs/vicuna-7b/2.7b.yaml")
    assert "32 -> 12" in planned
    ranks = "GPUS=2 timeout 300 bash launch/torchrun.sh --help"
    assert buildah(*run, "bash", "-c", ranks).count("Usage") == 2, "torchrun hangs where its own name does not resolve"
