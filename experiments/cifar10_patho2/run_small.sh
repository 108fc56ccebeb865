#!/usr/bin/env bash
# Two classes a client, small: 6 settings, 3 seeds; about 22 minutes on 2 cores (an estimate: README.md).
# Run tune_small.sh first: it chooses the learning rates. Start it again after a stop and it goes on.
experiment=cifar10_patho2
. "$(dirname "$0")/../common.sh"
seeds=${SEEDS:-550,110,220}
sweep small cifar10_patho2_small 2 <<LINES
algorithm=sparsyfed optimizer.lr=$(rate sparsyfed 0.1) experiment.seed=$seeds
algorithm=fedavg_ft optimizer.lr=$(rate fedavg 0.1) experiment.seed=$seeds
algorithm=dispfl algorithm.params.fair_budget=true optimizer.lr=$(rate dispfl 0.1) experiment.seed=$seeds
algorithm=ssfl optimizer.lr=$(rate ssfl 0.1) experiment.seed=$seeds
algorithm=fedavg optimizer.lr=$(rate fedavg 0.1) experiment.seed=$seeds
algorithm=local algorithm.params.fair_budget=true optimizer.lr=$(rate fedavg 0.1) experiment.seed=$seeds
LINES
keep small
