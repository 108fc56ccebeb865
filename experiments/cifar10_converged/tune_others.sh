#!/usr/bin/env bash
# The search of tune.sh for DisPFL and SparsyFed, at density 0.5 and at 0.05. Writes lr_others.json and
# lr_others_sparse.json, which run_others.sh reads.
experiment=cifar10_converged
. "$(dirname "$0")/../common.sh"
search tune_others cifar10_converged lr_others.json <<LINES
algorithm=dispfl algorithm.params.fair_budget=true model.dense_ratio=0.5 optimizer.lr=0.03,0.1
algorithm=sparsyfed model.dense_ratio=0.5 optimizer.lr=0.03,0.1
LINES
search tune_others_sparse cifar10_converged lr_others_sparse.json <<LINES
algorithm=dispfl algorithm.params.fair_budget=true model.dense_ratio=0.05 optimizer.lr=0.03,0.1
algorithm=sparsyfed model.dense_ratio=0.05 optimizer.lr=0.03,0.1
LINES
