#!/usr/bin/env bash
# A learning rate for every method, by the same small search: four rates, and more while the best is at an edge; 8 rounds, one
# seed that no reported run uses, accuracy on held-out training rows.
# Writes lr_small.json (all trials and the chosen rates), which run_small.sh reads. Run it before run_small.sh.
experiment=tinyimagenet
. "$(dirname "$0")/../common.sh"
choose tune_small tinyimagenet_small lr_small.json experiment.seed=1 training.comm_round=8 <<LINES
algorithm=ssfl optimizer.lr=0.1,0.03,0.01,0.003
algorithm=fedavg optimizer.lr=0.1,0.03,0.01,0.003
algorithm=sparsyfed optimizer.lr=0.1,0.03,0.01,0.003
algorithm=dispfl algorithm.params.fair_budget=true optimizer.lr=0.1,0.03,0.01,0.003
LINES
