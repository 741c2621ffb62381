#!/usr/bin/env bash
# Any face, in one or two steps: 25 minutes on two H200s. Run it again to go on where it stopped.
#   bash anifacediff_core/lab/training/runs/any_face.sh runs/any_face
set -euo pipefail
config=any_face
source "$(dirname "${BASH_SOURCE[0]}")/phases.sh"
beside capture stage1
phase evaluate "$all"
