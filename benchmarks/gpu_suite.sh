#!/usr/bin/env bash
# Every check that needs a GPU, and every benchmark; see benchmarks/gpu_suite.py.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec python -m benchmarks.gpu_suite "$@"
