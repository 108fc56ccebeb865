#!/usr/bin/env bash
# Tiny-ImageNet, small: 4 settings, 3 seeds; about 42 minutes on 2 cores (an estimate: README.md).
# Run tune_small.sh first: it chooses the learning rates. Start it again after a stop, and it continues.
experiment=tinyimagenet
. "$(dirname "$0")/../common.sh"
seeds=${SEEDS:-550,110,220}
ssfl_rate=$(rate SSFL)
fedavg_rate=$(rate FedAvg)
sparsyfed_rate=$(rate SparsyFed)
dispfl_rate=$(rate DisPFL)
sweep small tinyimagenet_small 2 <<LINES
algorithm=sparsyfed optimizer.lr=$sparsyfed_rate experiment.seed=$seeds
algorithm=dispfl algorithm.params.fair_budget=true optimizer.lr=$dispfl_rate experiment.seed=$seeds
algorithm=ssfl optimizer.lr=$ssfl_rate experiment.seed=$seeds
algorithm=fedavg optimizer.lr=$fedavg_rate experiment.seed=$seeds
LINES
keep small
