#!/usr/bin/env bash
# Two classes per client until curves are flat: four settings, three seeds, one after another on one core. Start it again
# after a stop, and it continues. Run tune.sh and tune_ft.sh first.
experiment=cifar10_patho2
. "$(dirname "$0")/../common.sh"
seeds=${SEEDS:-550,110,220}
lr() { rate "$1" lr.json; }
dense=$(lr algorithm=fedavg)
tuned=$(rate FedAvg-FT lr_ft.json)
half=$(lr "algorithm=ssfl model.dense_ratio=0.5")
random=$(lr "algorithm.params.mode=random_global model.dense_ratio=0.5")
dispfl=$(lr "algorithm=dispfl algorithm.params.fair_budget=true model.dense_ratio=0.5")
JOBS=${JOBS:-1} sweep runs cifar10_patho2_converged 1 <<LINES
algorithm=ssfl model.dense_ratio=0.5 optimizer.lr=$half experiment.seed=$seeds
# FedAvg-FT is FedAvg until its last phase: one run gives both rows of the table.
algorithm=fedavg_ft optimizer.lr=$dense optimizer.fine_tune_lr=$tuned experiment.seed=$seeds
algorithm.params.mode=random_global model.dense_ratio=0.5 optimizer.lr=$random experiment.seed=$seeds
algorithm=dispfl algorithm.params.fair_budget=true model.dense_ratio=0.5 optimizer.lr=$dispfl experiment.seed=$seeds
LINES
