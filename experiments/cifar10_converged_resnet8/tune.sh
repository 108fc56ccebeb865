#!/usr/bin/env bash
# A learning rate for every method, as in experiments/cifar10_converged/tune.sh; settings of similar density in one search, so
# that they get equally many trials. Writes lr_dense.json and lr_sparse.json, which run.sh reads.
experiment=cifar10_converged_resnet8
. "$(dirname "$0")/../common.sh"
search tune_sparse cifar10_converged_resnet8 lr_sparse.json <<LINES
algorithm=ssfl model.dense_ratio=0.1 optimizer.lr=0.03,0.1
algorithm.params.mode=random_global model.dense_ratio=0.1 optimizer.lr=0.03,0.1
LINES
search tune_dense cifar10_converged_resnet8 lr_dense.json <<LINES
algorithm=fedavg optimizer.lr=0.03,0.1
algorithm=ssfl model.dense_ratio=0.5 optimizer.lr=0.03,0.1
LINES
