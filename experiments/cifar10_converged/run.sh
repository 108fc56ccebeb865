#!/usr/bin/env bash
# Dense and masked runs of the study, one after another on one core, by setting (three seeds each), the most important
# settings first; 16 to 35 minutes of a core per run. Start it again after a stop, and it continues. Run tune.sh and
# tune_ft.sh before it; tune_others.sh and run_others.sh do the other methods.
experiment=cifar10_converged
. "$(dirname "$0")/../common.sh"
seeds=${SEEDS:-550,110,220}
lr() { rate "$1" lr.json; }
# A setting without a search uses the rate of the nearest searched one: below density 0.5 SSFL's at 0.1; for masks with
# random places that of the random mask.
dense=$(lr algorithm=fedavg)
tuned=$(rate FedAvg-FT lr_ft.json)
half=$(lr "algorithm=ssfl model.dense_ratio=0.5")
tenth=$(lr "algorithm=ssfl model.dense_ratio=0.1")
random_half=$(lr "algorithm.params.mode=random_global model.dense_ratio=0.5")
random_tenth=$(lr "algorithm.params.mode=random_global model.dense_ratio=0.1")
JOBS=${JOBS:-1} sweep runs cifar10_converged 1 <<LINES
# FedAvg-FT is FedAvg until its last phase: one run gives both rows of the table.
algorithm=fedavg_ft optimizer.lr=$dense optimizer.fine_tune_lr=$tuned experiment.seed=$seeds
algorithm=ssfl model.dense_ratio=0.5 optimizer.lr=$half experiment.seed=$seeds
algorithm=ssfl model.dense_ratio=0.1 optimizer.lr=$tenth experiment.seed=$seeds
algorithm.params.mode=random_global model.dense_ratio=0.1 optimizer.lr=$random_tenth experiment.seed=$seeds
algorithm.params.mode=random_global model.dense_ratio=0.5 optimizer.lr=$random_half experiment.seed=$seeds
algorithm=ssfl model.dense_ratio=0.2 optimizer.lr=$tenth experiment.seed=$seeds
algorithm=ssfl model.dense_ratio=0.05 optimizer.lr=$tenth experiment.seed=$seeds
algorithm.params.mode=ssfl_shuffled model.dense_ratio=0.1 optimizer.lr=$random_tenth experiment.seed=$seeds
algorithm.params.mode=ssfl_shuffled model.dense_ratio=0.5 optimizer.lr=$random_half experiment.seed=$seeds
algorithm.params.mode=random_layerwise model.dense_ratio=0.1 optimizer.lr=$random_tenth experiment.seed=$seeds
algorithm.params.mode=random_layerwise model.dense_ratio=0.5 optimizer.lr=$random_half experiment.seed=$seeds
algorithm.params.mode=random_global model.dense_ratio=0.05 optimizer.lr=$random_tenth experiment.seed=$seeds
algorithm.params.mode=random_global model.dense_ratio=0.2 optimizer.lr=$random_tenth experiment.seed=$seeds
LINES
# Planned additions, as a sweep of their own, so that the folder of the first one keeps its cells: shuffled and layer-wise
# masks at the other densities, then a mask for each client.
JOBS=${JOBS:-1} sweep runs_more cifar10_converged 1 <<LINES
algorithm.params.mode=ssfl_shuffled model.dense_ratio=0.05 optimizer.lr=$random_tenth experiment.seed=$seeds
algorithm.params.mode=ssfl_shuffled model.dense_ratio=0.2 optimizer.lr=$random_tenth experiment.seed=$seeds
algorithm.params.mode=random_layerwise model.dense_ratio=0.05 optimizer.lr=$random_tenth experiment.seed=$seeds
algorithm.params.mode=random_layerwise model.dense_ratio=0.2 optimizer.lr=$random_tenth experiment.seed=$seeds
algorithm.params.mode=random_clientwise model.dense_ratio=0.5 optimizer.lr=$random_half experiment.seed=$seeds
algorithm.params.mode=random_clientwise model.dense_ratio=0.1 optimizer.lr=$random_tenth experiment.seed=$seeds
LINES
