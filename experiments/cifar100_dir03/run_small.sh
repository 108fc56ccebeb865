#!/usr/bin/env bash
# CIFAR-100 with its own recipe, small: 5 settings, 3 seeds; about 23 minutes on 2 cores (an estimate: README.md).
# Run tune_small.sh first: it chooses the learning rates. Start it again after a stop and it goes on.
experiment=cifar100_dir03
. "$(dirname "$0")/../common.sh"
seeds=${SEEDS:-550,110,220}
sweep small cifar100_dir03_small 2 <<LINES
algorithm=sparsyfed optimizer.lr=$(rate sparsyfed 0.03) experiment.seed=$seeds
algorithm=fedavg_ft optimizer.lr=$(rate fedavg 0.03) experiment.seed=$seeds
algorithm=dispfl algorithm.params.fair_budget=true optimizer.lr=$(rate dispfl 0.03) experiment.seed=$seeds
algorithm=ssfl optimizer.lr=$(rate ssfl 0.03) experiment.seed=$seeds
algorithm=fedavg optimizer.lr=$(rate fedavg 0.03) experiment.seed=$seeds
LINES
keep small
