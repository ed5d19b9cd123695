#!/usr/bin/env bash
# Trains on the GPUs of this node under torchrun.
#
#   bash launch/torchrun.sh CONFIG [section.key=value ...]
#
# Needs the earlier stages in the run folder; `regrow run CONFIG` does them all and starts torchrun by itself. Run the
# same command again after an interruption: it resumes at the last checkpoint. GPUS=4 before the command takes so many
# of the GPUs and not all, or, without a GPU, so many CPU processes. Threads per process are set by regrow.
set -euo pipefail
venv="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)/.venv"
[[ ! -f $venv/setup.done ]] || PATH="$venv/bin:$PATH"

if [[ -z ${GPUS:-} ]] && ! nvidia-smi -L >/dev/null 2>&1; then
    echo "torchrun.sh: no GPU here; say how many CPU processes: GPUS=2 bash launch/torchrun.sh CONFIG" >&2
    exit 1
fi

# What torchrun would choose, and warn of; regrow sets its own.
export OMP_NUM_THREADS=1

# torchrun hands TERM, INT and HUP on, and kills the ranks so many seconds later (before torch 2.12 always 30): training
# saves at its next step, leaves train/REQUEUE and ends. torchrun itself then ends with 1, whatever its ranks say.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"

# --standalone takes a free port: two jobs on one node do not meet. They meet their own ranks at 127.0.0.1: the node's
# name need not resolve.
# USR1, left alone, would end torchrun itself.
exec torchrun --standalone --local-addr 127.0.0.1 --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --nproc-per-node "${GPUS:-gpu}" -m pipeline train "$@"
