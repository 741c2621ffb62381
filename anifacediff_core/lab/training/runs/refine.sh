#!/usr/bin/env bash
# The second course of the bundled checkpoint: 20 minutes on two H100s. Run it again to go on where it stopped.
#   bash anifacediff_core/lab/training/runs/refine.sh runs/refine
set -euo pipefail
config=refine
source "$(dirname "${BASH_SOURCE[0]}")/phases.sh"
beside capture stage1
phase evaluate "$all"
