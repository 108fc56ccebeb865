#!/usr/bin/env bash
# The paper's cells on one CUDA device, one time slice per call; call it again until it prints that all are finished.
# Each call continues the first unfinished cell for SLICE_SECONDS (default 540), which then stops with a checkpoint. To
# continue on another machine of the same kind, copy OUT to it. The most important cells come first.
# Environment: SSFL_DATA_DIR, PYTHON, OUT (default outputs/gpu/cells), SEEDS ("550"; precision studies: "550 110 220"),
#   PRECISION (bf16), SLICE_SECONDS, EXTRA (additional settings; a dry run: EXTRA="preset=digits training.comm_round=1").
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-outputs/gpu/cells}
data=${SSFL_DATA_DIR:-./dataset}
slice=${SLICE_SECONDS:-540}
precision=${PRECISION:-bf16}
cells=(
  "preset=cifar10 algorithm=ssfl model.dense_ratio=0.5"
  "preset=cifar10 algorithm=fedavg"
  "preset=cifar10 algorithm=ssfl model.dense_ratio=0.3"
  "preset=cifar10 algorithm=ssfl model.dense_ratio=0.2"
  "preset=cifar10 algorithm=ssfl model.dense_ratio=0.1"
  "preset=cifar10 algorithm=ssfl model.dense_ratio=0.05"
  "preset=cifar100 algorithm=ssfl model.dense_ratio=0.5"
)
for seed in ${SEEDS:-550}; do
  for cell in "${cells[@]}"; do
    # EXTRA is part of the name, so that a dry run is not taken for a cell.
    name="$(echo "$cell${EXTRA:+ $EXTRA}" | tr -c 'A-Za-z0-9.\n' '_')_seed_${seed}_$precision"
    folder=$(find "$out/$name" -mindepth 1 -maxdepth 1 -type d 2>/dev/null | sort | tail -n 1 || true)
    if [ -n "$folder" ] && grep -q '"run_finished"' "$folder/metrics.jsonl"; then
      continue
    fi
    echo "== $name"
    if [ -n "$folder" ]; then
      exec "$python" -m ssfl resume "$folder"
    fi
    # shellcheck disable=SC2086  # words
    exec "$python" -m ssfl run $cell "dataset.data_dir=$data" "experiment.seed=$seed" "experiment.output_dir=$out" \
      "wandb.exp_name=$name" "engine.device=${DEVICE:-cuda}" "engine.precision=$precision" tracking.console=plain \
      "checkpoint.stop_after_seconds=$slice" ${EXTRA:-}
  done
done
echo "all cells are finished: $out"
