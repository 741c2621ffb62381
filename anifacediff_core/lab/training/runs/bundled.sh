#!/usr/bin/env bash
# The bundled checkpoint on all GPUs of this machine: 20 minutes on four H200s. Run it again to go on where it stopped.
#   bash anifacediff_core/lab/training/runs/bundled.sh runs/bundled
set -euo pipefail
config=bundled
source "$(dirname "${BASH_SOURCE[0]}")/phases.sh"
beside capture autoencoder stage1
phase stage2 "$all"
phase evaluate "$all"
