#!/usr/bin/env bash
# A learning rate for every method, as in experiments/cifar10_converged/tune.sh. Writes lr.json, which run.sh reads.
experiment=cifar10_converged_resnet8
. "$(dirname "$0")/../common.sh"
search tune cifar10_converged_resnet8 lr.json <<LINES
algorithm=fedavg optimizer.lr=0.03,0.1
algorithm=ssfl model.dense_ratio=0.5 optimizer.lr=0.03,0.1
algorithm=ssfl model.dense_ratio=0.1 optimizer.lr=0.03,0.1
algorithm.params.mode=random_global model.dense_ratio=0.1 optimizer.lr=0.03,0.1
LINES
