#!/usr/bin/env bash
# All cells of the study, two at a time; run it again to continue after a stop. Needs CIFAR-10 (docs/data.md).
#   DATA_DIR=./dataset JOBS=2 bash experiments/cifar10_small/run.sh
# Then: .venv/bin/ssfl report outputs/cifar10_small/* --out experiments/cifar10_small
set -euo pipefail
cd "$(dirname "$0")/../.."
ssfl=${SSFL:-.venv/bin/ssfl}
data=${DATA_DIR:-./dataset}
seeds=(550 110 220)
export ssfl data

cell() {                                    # NAME OVERRIDES...: run it, resume it, or leave it when it is done
  local name=$1 last; shift
  last=$(ls -d "outputs/cifar10_small/$name"/2* 2>/dev/null | tail -n 1 || true)
  if [ -n "$last" ]; then
    [ -e "$last/model.safetensors" ] && return
    echo "resume $name"; "$ssfl" resume "$last" >"outputs/cifar10_small/$name.log" 2>&1
  else
    echo "start  $name"; mkdir -p outputs/cifar10_small
    "$ssfl" run preset=cifar10_small "dataset.data_dir=$data" experiment.output_dir=outputs/cifar10_small "wandb.exp_name=$name" \
      tracking.console=plain "$@" >"outputs/cifar10_small/$name.log" 2>&1
  fi
}
export -f cell

{
  for seed in "${seeds[@]}"; do
    for density in 0.5 0.2 0.1 0.05; do
      echo "ssfl-d$density-s$seed model.dense_ratio=$density experiment.seed=$seed"
    done
    echo "fedavg-s$seed algorithm=fedavg experiment.seed=$seed"
    for mode in random_global random_clientwise; do
      echo "$mode-d0.1-s$seed algorithm.params.mode=$mode model.dense_ratio=0.1 experiment.seed=$seed"
    done
  done
} | xargs -P "${JOBS:-2}" -L 1 bash -c 'cell "$@"' _
