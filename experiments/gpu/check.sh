#!/usr/bin/env bash
# Checks correctness on a machine with a CUDA device: the tests that need one, then two rounds of the small CNN with each
# executor on the device and on the CPU. The last lines of all runs must agree (accuracies to the third digit).
# Environment: PYTHON (default .venv/bin/python), OUT (default outputs/gpu).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-outputs/gpu}
if ! "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
  echo "experiments/gpu: PyTorch sees no CUDA device here; nothing is checked"
  exit 0
fi
"$python" -m pytest -q -m gpu tests/engine/compute/test_device.py
run() {
  echo "== $*"
  "$python" -m ssfl run preset=digits model.name=cnn training.comm_round=2 "experiment.output_dir=$out" \
    wandb.exp_name=check tracking.console=quiet "$@"
}
run engine.device=cpu engine.executor=sequential
run engine.device=cuda engine.executor=sequential
run engine.device=cuda engine.executor=batched
run engine.device=cuda engine.executor=batched engine.precision=tf32
run engine.device=cuda engine.executor=batched engine.precision=bf16
