#!/usr/bin/env bash
# Sharper and steadier than any_face, on two GPUs. Run it again to go on where it stopped.
#   bash anifacediff_core/lab/training/runs/sharp.sh runs/sharp
set -euo pipefail
config=sharp
source "$(dirname "${BASH_SOURCE[0]}")/phases.sh"
phase autoencoder "$all"
beside capture stage1 stage2
phase evaluate "$all"
