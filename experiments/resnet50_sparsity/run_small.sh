#!/usr/bin/env bash
# Accuracy against sparsity, small: 2 methods at 4 densities and FedAvg, 3 seeds; about 21 minutes on 2 cores (README.md).
# Run tune_small.sh first: it chooses the learning rates. Start it again after a stop, and it continues.
experiment=resnet50_sparsity
. "$(dirname "$0")/../common.sh"
seeds=${SEEDS:-550,110,220}
ssfl_rate=$(rate SSFL)
fedavg_rate=$(rate FedAvg)
dispfl_rate=$(rate DisPFL)
sweep small resnet50_sparsity_small 2 <<LINES
algorithm=dispfl algorithm.params.fair_budget=true model.dense_ratio=0.5,0.2,0.1,0.05 optimizer.lr=$dispfl_rate experiment.seed=$seeds
algorithm=ssfl model.dense_ratio=0.5,0.2,0.1,0.05 optimizer.lr=$ssfl_rate experiment.seed=$seeds
algorithm=fedavg optimizer.lr=$fedavg_rate experiment.seed=$seeds
LINES
keep small
