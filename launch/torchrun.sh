#!/usr/bin/env bash
# Trains on the GPUs of this node under torchrun.
#
#   GPUS=8 bash launch/torchrun.sh CONFIG [section.key=value ...]
#
# Needs the earlier stages in the run folder; `regrow run CONFIG` does them all and starts torchrun by itself. Run the
# same command again after an interruption: it resumes at the last checkpoint. Without a GPU it starts that many CPU
# processes. Threads per process are set by regrow.
set -euo pipefail
venv="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)/.venv"
[[ ! -f $venv/setup.done ]] || PATH="$venv/bin:$PATH"

# --standalone takes a free port: two jobs on one node do not meet. On TERM the ranks end at once; the same command
# goes on at the newest checkpoint (train.checkpoint_every says how much is lost at most).
exec torchrun --standalone --nproc-per-node "${GPUS:-8}" -m pipeline train "$@"
