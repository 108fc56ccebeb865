#!/usr/bin/env bash
# The paper's round per executor and precision (docs/gpu.md); writes figures and machine to OUT (default outputs/gpu).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${OUT:-outputs/gpu}
mkdir -p "$out"
"${PYTHON:-.venv/bin/python}" -m benchmarks.bench_gpu --json "$out/bench_gpu.json" "$@" 2>"$out/bench_gpu.profile.txt"
