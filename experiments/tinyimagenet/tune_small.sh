#!/usr/bin/env bash
# A learning rate for every method, by the same small search: four rates, 8 rounds, one seed that no reported run uses.
# Writes lr_small.json (every trial, and what was chosen), which run_small.sh reads. Run it before run_small.sh.
experiment=tinyimagenet
. "$(dirname "$0")/../common.sh"
sweep tune_small tinyimagenet_small 2 <<LINES
algorithm=ssfl optimizer.lr=0.1,0.03,0.01,0.003 experiment.seed=1 training.comm_round=8
algorithm=fedavg optimizer.lr=0.1,0.03,0.01,0.003 experiment.seed=1 training.comm_round=8
algorithm=sparsyfed optimizer.lr=0.1,0.03,0.01,0.003 experiment.seed=1 training.comm_round=8
algorithm=dispfl algorithm.params.fair_budget=true optimizer.lr=0.1,0.03,0.01,0.003 experiment.seed=1 training.comm_round=8
LINES
"$python" -m ssfl.report.tune choose "$out/tune_small" "$results/lr_small.json"
