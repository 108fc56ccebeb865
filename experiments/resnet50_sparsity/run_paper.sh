#!/usr/bin/env bash
# Accuracy against sparsity at paper scale: ResNet50, 50 to 95 % sparsity.
# For an accelerator (device and executor are chosen automatically). Every cell writes checkpoints. After a stop, start the
# script again, on this machine or another one with the same OUT, and it continues. The most important cells come first.
# The paper's five seeds are unknown: 550 is the one shown, 110 and 220 are in earlier scripts of the authors, 330 and 440 are ours.
experiment=resnet50_sparsity
. "$(dirname "$0")/../common.sh"
more=${SEEDS:-110,220,330,440}
sweep paper resnet50_sparsity 1 <<LINES
algorithm=ssfl model.dense_ratio=0.05,0.5,0.3,0.2,0.1 experiment.seed=550
algorithm=dispfl algorithm.params.regrow=random training.batch_size=128 training.comm_round=500 model.dense_ratio=0.05,0.5,0.3,0.2,0.1 experiment.seed=550
algorithm=fedavg experiment.seed=550
algorithm=ssfl model.dense_ratio=0.05,0.5,0.3,0.2,0.1 experiment.seed=$more
algorithm=dispfl algorithm.params.regrow=random training.batch_size=128 training.comm_round=500 model.dense_ratio=0.05,0.5,0.3,0.2,0.1 experiment.seed=$more
LINES
keep paper
