#!/usr/bin/env bash
# The demo: prunes a real model, trains it on real text and reports, on two CPU cores.
#
#   bash launch/demo.sh [section.key=value ...]     run it again after an interruption: it goes on where it was
#
# Paths in the config and in the overrides are read from the project's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
python -m pipeline.demo
exec python -m pipeline run configs/demo.yaml "$@"
