#!/usr/bin/env bash
# The tests.
#
#   bash launch/test.sh                 all but those marked slow, gpu, gpus or cluster
#   bash launch/test.sh -m slow         those
#   bash launch/test.sh tests/data -x   anything that pytest takes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
python -m pipeline.demo

choice=(-m "not slow and not gpu and not gpus and not cluster")
# Two processes share the tests, file by file, in the order that tests/conftest.py gives them: many wait for processes
# that they start. (-n 0 runs them in one.)
share=(-n 2 --dist loadfile --no-loadscope-reorder)
for argument in "$@"; do
    # The caller's own choice of markers stands alone; the slow ones measure, and have the machine to themselves.
    if [[ $argument == -m* ]]; then choice=() share=(); fi
done
if ((${#choice[@]})); then
    echo "test: left out: the tests marked slow (minutes each), gpu (an NVIDIA GPU), gpus (two of them) and"
    echo "test: cluster (root, and Slurm, ssh or an image builder)"
    echo "test: run them:  bash launch/test.sh -m slow    -m gpu    -m gpus    -m cluster    all: -m ''"
fi
exec python -m pytest ${share[@]+"${share[@]}"} ${choice[@]+"${choice[@]}"} "$@"
