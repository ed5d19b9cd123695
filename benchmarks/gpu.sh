#!/usr/bin/env bash
# What can be measured on one GPU of 80 GB, in minutes and without a network: tests, ceiling, training, scoring, a kill.
#
#   bash benchmarks/gpu.sh                         training: all that fits into 6 minutes, most worth first
#   bash benchmarks/gpu.sh --part 2                a kill and a resume, the tests marked gpu, scoring, small models
#   bash benchmarks/gpu.sh --part 3                ways of making the loss, attention kernels that are installed
#   bash benchmarks/gpu.sh --minutes 9 2.7b demo   these two
#   bash benchmarks/gpu.sh --quick                 all of it in small, on a CPU
#
# Nothing is installed. It runs under $PYTHON if that is set, else .venv's Python if there is a .venv, else python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-}
if [[ -z $python && -x .venv/bin/python ]]; then python=.venv/bin/python; fi
python=$(command -v "${python:-python3}") || {
    echo "gpu: no ${PYTHON:-python3}: set PYTHON to one that has torch and what setup.cfg asks for" >&2
    exit 1
}
echo "gpu: $("$python" --version) at $python"
packages=(datasets deepspeed gguf psutil pydantic pytest ruamel.yaml safetensors torch transformers typer webdataset zstandard)
lacking=$("$python" -c 'import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if find_spec(name.split(".")[0]) is None))' "${packages[@]}")
if [[ -n $lacking ]]; then
    echo "gpu: that Python lacks $lacking; the versions tried together are in launch/constraints.txt" >&2
    exit 1
fi
# As it goes, line by line; from this checkout; and without asking a network that may not be there.
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
exec "$python" benchmarks/gpu.py "$@"
