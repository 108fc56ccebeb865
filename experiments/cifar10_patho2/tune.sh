#!/usr/bin/env bash
# A learning rate for every method, as in experiments/cifar10_converged/tune.sh. Writes lr.json, which run.sh reads.
experiment=cifar10_patho2
. "$(dirname "$0")/../common.sh"
search tune cifar10_patho2_converged lr.json <<LINES
algorithm=fedavg optimizer.lr=0.01,0.03
algorithm=ssfl model.dense_ratio=0.5 optimizer.lr=0.01,0.03
algorithm.params.mode=random_global model.dense_ratio=0.5 optimizer.lr=0.01,0.03
algorithm=dispfl algorithm.params.fair_budget=true model.dense_ratio=0.5 optimizer.lr=0.01,0.03
LINES
