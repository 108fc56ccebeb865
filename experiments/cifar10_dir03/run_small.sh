#!/usr/bin/env bash
# The README's table, small: 8 settings, 3 seeds; about 68 minutes on 2 cores (an estimate: README.md).
# Run tune_small.sh first: it chooses the learning rates. Start it again after a stop and it goes on.
experiment=cifar10_dir03
. "$(dirname "$0")/../common.sh"
seeds=${SEEDS:-550,110,220}
sweep small cifar10_dir03_small 2 <<LINES
# The longest cells first, so that no core waits at the end: DisPFL as published trains all 50 clients every round.
algorithm=dispfl optimizer.lr=$(rate dispfl 0.1) experiment.seed=$seeds
algorithm=sparsyfed optimizer.lr=$(rate sparsyfed 0.1) experiment.seed=$seeds
algorithm=dispfl algorithm.params.fair_budget=true optimizer.lr=$(rate dispfl 0.1) experiment.seed=$seeds
algorithm=fedavg_ft optimizer.lr=$(rate fedavg 0.1) experiment.seed=$seeds
algorithm=ssfl optimizer.lr=$(rate ssfl 0.1) experiment.seed=$seeds
algorithm.params.mode=random_global optimizer.lr=$(rate ssfl 0.1) experiment.seed=$seeds
algorithm=fedavg optimizer.lr=$(rate fedavg 0.1) experiment.seed=$seeds
algorithm=local algorithm.params.fair_budget=true optimizer.lr=$(rate fedavg 0.1) experiment.seed=$seeds
LINES
keep small
