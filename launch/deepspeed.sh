#!/usr/bin/env bash
# Trains on the GPUs of this node under DeepSpeed's launcher.
#
#   bash launch/deepspeed.sh CONFIG [section.key=value ...]
#
# Needs the earlier stages in the run folder; `regrow run CONFIG` does them all. Run the same command again after an
# interruption: it resumes at the last checkpoint. GPUS=4 before the command takes so many of the GPUs and not all, or,
# without a GPU, so many CPU processes. Two jobs on one node need a MASTER_PORT each.
set -euo pipefail
venv="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)/.venv"
[[ ! -f $venv/setup.done ]] || PATH="$venv/bin:$PATH"

if ! nvidia-smi -L >/dev/null 2>&1; then
    if [[ -z ${GPUS:-} ]]; then
        echo "deepspeed.sh: no GPU here; say how many CPU processes: GPUS=2 bash launch/deepspeed.sh CONFIG" >&2
        exit 1
    fi
    # Else each of the launcher's processes warns that it had to find out.
    export DS_ACCELERATOR=cpu
fi

# Given a number, the launcher counts from GPU 0 and drops CUDA_VISIBLE_DEVICES; left to itself, it obeys it.
count=()
if [[ -n ${GPUS:-} ]]; then count=(--num_gpus "$GPUS"); fi

# The launcher does not pass a signal on to what it started. As a job of its own, all of it gets the signal and
# ends; the next start goes on at the newest checkpoint.
set -m
deepspeed ${count[@]+"${count[@]}"} --master_port "${MASTER_PORT:-29500}" --no_local_rank --module pipeline train "$@" &
trap 'kill -TERM -- -$!' TERM INT HUP QUIT USR1 USR2
status=0
wait $! || status=$?
while kill -0 -- -$! 2>/dev/null; do sleep 0.2; done
exit "$status"
