#!/usr/bin/env bash
# ResNet-8 until curves are flat: six settings, three seeds, one after another on one core, about half an hour per run.
# Start it again after a stop, and it continues. Run tune.sh first.
experiment=cifar10_converged_resnet8
. "$(dirname "$0")/../common.sh"
seeds=${SEEDS:-550,110,220}
dense=$(rate algorithm=fedavg lr_dense.json)
half=$(rate "algorithm=ssfl model.dense_ratio=0.5" lr_dense.json)
# Density 0.05 was not searched; it uses the rate of density 0.1.
tenth=$(rate "algorithm=ssfl model.dense_ratio=0.1" lr_sparse.json)
random=$(rate "algorithm.params.mode=random_global model.dense_ratio=0.1" lr_sparse.json)
JOBS=${JOBS:-1} sweep runs cifar10_converged_resnet8 1 <<LINES
algorithm=ssfl model.dense_ratio=0.1 optimizer.lr=$tenth experiment.seed=$seeds
algorithm.params.mode=random_global model.dense_ratio=0.1 optimizer.lr=$random experiment.seed=$seeds
algorithm=fedavg optimizer.lr=$dense experiment.seed=$seeds
algorithm=ssfl model.dense_ratio=0.5 optimizer.lr=$half experiment.seed=$seeds
algorithm=ssfl model.dense_ratio=0.05 optimizer.lr=$tenth experiment.seed=$seeds
algorithm.params.mode=random_global model.dense_ratio=0.05 optimizer.lr=$random experiment.seed=$seeds
LINES
