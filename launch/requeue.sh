# shellcheck shell=bash
# For scripts that start jobs: where the run stands, how long a save takes, and whether starting the job again leads anywhere.
#
#   source launch/requeue.sh
#   find_run CONFIG [section.key=value ...] [--until STAGE]     sets run (its folder) and here (overrides for a node)
#   save_seconds         of the newest checkpoint: as training measured it, or as its files' times tell
#   progress             a line that changes whenever the run gets on
#   may_requeue BEFORE   whether the run got on since it stood at BEFORE, or this is the first start that did not;
#                        RUN/requeued counts those in a row

# Starts in a row without progress, behind which a job is not started again.
IDLE_STARTS=2

say() { printf 'launch: %s\n' "$*" >&2; }

# Two lines: the run's folder, and the cache of shards where the config leaves it where one stands.
find_run() {
    local answer
    answer=$(python - "$@" <<'PYTHON'
import sys

from pipeline.config import ConfigError, load_config

words, skip = [], False
for word in sys.argv[1:]:
    if not skip and not word.startswith("-"):
        words.append(word)
    skip = word in ("--until", "--redo")
try:
    config = load_config(words[0], words[1:])
except (ConfigError, IndexError) as error:
    sys.exit(f"launch: {error if words else 'name a config'}")
print(config.run_folder)
print("node" if config.data.cache == type(config.data).model_fields["cache"].default else "")
PYTHON
    ) || return
    run=${answer%%$'\n'*}
    here=()
    # Beside the code it would lie on the file system that all nodes share: fetched to there, and read back from there.
    [[ $answer != *$'\n'node ]] || here=("data.cache=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/regrow-$(id -un)/shards")
}

newest_checkpoint() { # prints its folder, if there is one
    local marks=("$run"/train/checkpoints/step-*/COMPLETE)
    [[ ! -e ${marks[-1]} ]] || printf '%s\n' "${marks[-1]%/COMPLETE}"
}

save_seconds() {
    local newest measured=""
    [[ ! -f $run/train/REQUEUE ]] ||
        measured=$(sed -n 's/.*"save_seconds": *\([0-9]*\).*/\1/p' "$run/train/REQUEUE")
    newest=$(newest_checkpoint)
    if [[ -z $measured && -n $newest ]]; then
        measured=$(find "$newest" -type f -printf '%T@\n' | sort -n | sed -n '1p;$p' | cut -d . -f 1 | paste -sd ' ' |
            { read -r first last && echo $((last - first)); })
    fi
    echo "${measured:-0}"
}

progress() {
    local newest
    newest=$(newest_checkpoint)
    newest=${newest:-none}
    # Within the stages before training: what they keep of their own progress grows.
    printf '%s stages done, newest checkpoint %s, %s bytes of progress\n' \
        "$(find "$run" -mindepth 2 -maxdepth 2 -name stage.json 2>/dev/null | wc -l)" \
        "${newest##*/}" \
        "$(find "$run"/*/progress -type f -printf '%s\n' 2>/dev/null | awk '{sum += $1} END {print sum + 0}')"
}

may_requeue() { # BEFORE
    local idle=0 now
    now=$(progress)
    [[ ! -f $run/requeued ]] || idle=$(sed -n 's/^\([0-9]*\) starts.*/\1/p' "$run/requeued")
    if [[ $now == "$1" ]]; then idle=$((${idle:-0} + 1)); else idle=0; fi
    mkdir -p "$run"
    printf '%s starts in a row without progress: %s\n' "$idle" "$now" >"$run/requeued"
    # In a trap a bare return would have the status of what the signal met.
    ((idle < IDLE_STARTS)) && return 0
    say "not started again: $idle starts in a row got no further than $now." \
        "Give the job more time (--time), or have it save more often (train.checkpoint_every); then submit it again"
    rm -f "$run/requeued"
    return 1
}
