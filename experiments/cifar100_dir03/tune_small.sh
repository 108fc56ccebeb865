#!/usr/bin/env bash
# A learning rate for every method, by the same small search: three rates, and more while the best is at an edge; 6 rounds, one
# seed that no reported run uses, accuracy on held-out training rows.
# Writes lr_small.json (all trials and the chosen rates), which run_small.sh reads. Run it before run_small.sh.
experiment=cifar100_dir03
. "$(dirname "$0")/../common.sh"
choose tune_small cifar100_dir03_small lr_small.json experiment.seed=1 training.comm_round=6 <<LINES
algorithm=ssfl optimizer.lr=0.1,0.03,0.01
algorithm=fedavg optimizer.lr=0.1,0.03,0.01
algorithm=sparsyfed optimizer.lr=0.1,0.03,0.01
algorithm=dispfl algorithm.params.fair_budget=true optimizer.lr=0.1,0.03,0.01
LINES
