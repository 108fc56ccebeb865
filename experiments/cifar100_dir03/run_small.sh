#!/usr/bin/env bash
# CIFAR-100 with its own recipe, small: 5 settings, 3 seeds; about 23 minutes on 2 cores (an estimate: README.md).
# Run tune_small.sh first: it chooses the learning rates. Start it again after a stop, and it continues.
experiment=cifar100_dir03
. "$(dirname "$0")/../common.sh"
seeds=${SEEDS:-550,110,220}
ssfl_rate=$(rate SSFL)
fedavg_rate=$(rate FedAvg)
sparsyfed_rate=$(rate SparsyFed)
dispfl_rate=$(rate DisPFL)
sweep small cifar100_dir03_small 2 <<LINES
algorithm=sparsyfed optimizer.lr=$sparsyfed_rate experiment.seed=$seeds
algorithm=fedavg_ft optimizer.lr=$fedavg_rate experiment.seed=$seeds
algorithm=dispfl algorithm.params.fair_budget=true optimizer.lr=$dispfl_rate experiment.seed=$seeds
algorithm=ssfl optimizer.lr=$ssfl_rate experiment.seed=$seeds
algorithm=fedavg optimizer.lr=$fedavg_rate experiment.seed=$seeds
LINES
keep small
