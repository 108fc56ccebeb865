#!/usr/bin/env bash
# The study's DisPFL and SparsyFed. Run tune_others.sh first. Start it again after a stop, and it continues.
experiment=cifar10_converged
. "$(dirname "$0")/../common.sh"
seeds=${SEEDS:-550,110,220}
lr() { rate "$1" lr_others.json; }
dispfl=$(lr "algorithm=dispfl algorithm.params.fair_budget=true model.dense_ratio=0.5")
sparsyfed=$(lr "algorithm=sparsyfed model.dense_ratio=0.5")
JOBS=${JOBS:-1} sweep runs_others cifar10_converged 1 <<LINES
algorithm=dispfl algorithm.params.fair_budget=true model.dense_ratio=0.5 optimizer.lr=$dispfl experiment.seed=$seeds
algorithm=sparsyfed model.dense_ratio=0.5 optimizer.lr=$sparsyfed experiment.seed=$seeds
LINES
# Planned addition: density 0.05, for the claim that SSFL's gap grows with sparsity.
sparse() { rate "$1" lr_others_sparse.json; }
dispfl=$(sparse "algorithm=dispfl algorithm.params.fair_budget=true model.dense_ratio=0.05")
sparsyfed=$(sparse "algorithm=sparsyfed model.dense_ratio=0.05")
JOBS=${JOBS:-1} sweep runs_others_more cifar10_converged 1 <<LINES
algorithm=dispfl algorithm.params.fair_budget=true model.dense_ratio=0.05 optimizer.lr=$dispfl experiment.seed=$seeds
algorithm=sparsyfed model.dense_ratio=0.05 optimizer.lr=$sparsyfed experiment.seed=$seeds
LINES
