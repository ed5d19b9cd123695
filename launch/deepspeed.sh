#!/usr/bin/env bash
# Trains on the GPUs of this node, or of several, under DeepSpeed's launcher.
#
#   bash launch/deepspeed.sh CONFIG [section.key=value ...]
#   HOSTFILE=hosts bash launch/deepspeed.sh CONFIG ...       lines "NAME slots=8"; by pdsh and ssh without a password
#
# Needs the earlier stages in the run folder; `regrow run CONFIG` does them all. Run the same command again after an
# interruption: it resumes at the last checkpoint. GPUS=4 before the command takes so many of the GPUs and not all, or,
# without a GPU, so many CPU processes. Two jobs on one node need a MASTER_PORT each.
set -euo pipefail
venv="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)/.venv"
[[ ! -f $venv/setup.done ]] || PATH="$venv/bin:$PATH"
# shellcheck source=launch/requeue.sh
source "$(dirname "${BASH_SOURCE[0]}")/requeue.sh"

several=()
if [[ -n ${HOSTFILE:-} ]]; then
    # Without the file the launcher would take this node alone; of one with a single line it would start here.
    if [[ ! -f $HOSTFILE ]]; then
        echo "deepspeed.sh: HOSTFILE=$HOSTFILE: no such file" >&2
        exit 1
    elif ! command -v pdsh >/dev/null; then
        echo "deepspeed.sh: several nodes are reached by pdsh, which is not here" >&2
        exit 1
    fi
    several=(--hostfile "$HOSTFILE" --force_multi)
elif ! nvidia-smi -L >/dev/null 2>&1; then
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

# DeepSpeed's launcher kills the ranks 30 s after a signal, and on several nodes none reaches them. So a signal to this
# shell becomes a file in the run folder, which the first rank looks for: training saves at its next step and ends, with
# status 75. A second signal, 3 s or more after the first, ends all at once. Handled before there is anything to end: a
# signal between the launcher's start and its handler would end this shell alone.
asked='' since=0 folder='' job=''
stop() {
    if [[ -z $asked ]]; then
        asked=SIG$1 since=$SECONDS
    elif [[ -n $job ]] && ((SECONDS - since >= 3)); then
        kill -TERM -- "-$job" 2>/dev/null || true
    fi
}
for name in TERM INT HUP QUIT USR1 USR2; do
    # shellcheck disable=SC2064
    trap "stop $name" "$name"
done
[[ -z $asked ]] || exit 75
set -m
deepspeed ${several[@]+"${several[@]}"} ${count[@]+"${count[@]}"} --master_port "${MASTER_PORT:-29500}" \
    --no_local_rank --module pipeline train "$@" &
job=$!
set +m
# Killed, the launcher leaves the connections to other nodes, whose ranks end with them. This outlives it and this shell.
if ((${#several[@]})); then
    (setsid bash -c 'while kill -0 "$1"; do sleep 1; done; kill -TERM -- "-$1"' _ "$job" </dev/null >/dev/null 2>&1 &)
fi
while kill -0 -- "-$job" 2>/dev/null; do
    if [[ -n $asked ]]; then
        if [[ -z $folder ]] && find_run "$@"; then folder=$run/train; fi
        # Again and again: a start that has just begun takes away what an earlier one left.
        [[ -z $folder ]] || { mkdir -p "$folder" && printf '%s\n' "$asked" >"$folder/STOP"; } || true
    fi
    sleep 0.5
done
status=0
wait "$job" || status=$?
[[ -z $folder ]] || rm -f "$folder/STOP"
exit "$status"
