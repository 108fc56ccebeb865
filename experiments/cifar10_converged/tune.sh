#!/usr/bin/env bash
# Learning rates by accuracy on held-out rows: two rates, and more for all while a best one is at an edge; 40 rounds, one
# seed that no reported run uses. Writes lr.json, which run.sh reads. Continues after a stop.
experiment=cifar10_converged
. "$(dirname "$0")/../common.sh"
# The rate decays to 1/30 over the rounds of the search, as over the first 300 rounds of the runs.
search tune cifar10_converged lr.json <<LINES
algorithm=fedavg optimizer.lr=0.03,0.1
algorithm=ssfl model.dense_ratio=0.5 optimizer.lr=0.03,0.1
algorithm=ssfl model.dense_ratio=0.1 optimizer.lr=0.03,0.1
algorithm.params.mode=random_global model.dense_ratio=0.5 optimizer.lr=0.03,0.1
algorithm.params.mode=random_global model.dense_ratio=0.1 optimizer.lr=0.03,0.1
LINES
