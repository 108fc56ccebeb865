#!/usr/bin/env bash
# CIFAR-100 at paper scale: ResNet18, 10 local epochs, batch 128, momentum 0.9, a cosine inside each round.
# For an accelerator (device and executor are chosen automatically). Every cell writes checkpoints. After a stop, start the
# script again, on this machine or another one with the same OUT, and it continues. The most important cells come first.
# The paper's five seeds are unknown: 550 is the one shown, 110 and 220 are in earlier scripts of the authors, 330 and 440 are ours.
experiment=cifar100_dir03
. "$(dirname "$0")/../common.sh"
more=${SEEDS:-110,220,330,440}
sweep paper cifar100 1 <<LINES
algorithm=ssfl,fedavg,sparsyfed experiment.seed=550
algorithm=dispfl algorithm.params.fair_budget=true experiment.seed=550
algorithm=fedavg_ft experiment.seed=550
algorithm=ssfl,fedavg,sparsyfed,fedavg_ft experiment.seed=$more
algorithm=dispfl algorithm.params.fair_budget=true experiment.seed=$more
LINES
keep paper
