#!/usr/bin/env bash
# The README's table at paper scale: ResNet18, 100 clients, 10 per round, 1000 rounds of 5 local epochs, batch 16.
# For an accelerator (device and executor are chosen automatically). Every cell writes checkpoints. After a stop, start the
# script again, on this machine or another one with the same OUT, and it continues. The most important cells come first.
# The paper's five seeds are unknown: 550 is the one shown, 110 and 220 are in earlier scripts of the authors, 330 and 440 are ours.
experiment=cifar10_dir03
. "$(dirname "$0")/../common.sh"
more=${SEEDS:-110,220,330,440}
sweep paper cifar10 1 <<LINES
algorithm=ssfl,fedavg,sparsyfed experiment.seed=550
# As published: every client trains in every round, batch 128, 500 rounds, random regrowth (the published scripts).
algorithm=dispfl algorithm.params.regrow=random training.batch_size=128 training.comm_round=500 experiment.seed=550
algorithm=dispfl algorithm.params.fair_budget=true experiment.seed=550
algorithm=fedavg_ft experiment.seed=550
# SparsyFed's own recipe (BatchNorm, one epoch, lr 0.5 to 0.01, no augmentation), at this table's density and split.
algorithm=sparsyfed preset=sparsyfed model.dense_ratio=0.5 dataset.partition_alpha=0.3 experiment.seed=550
algorithm=ssfl,fedavg,sparsyfed,fedavg_ft experiment.seed=$more
algorithm=dispfl algorithm.params.regrow=random training.batch_size=128 training.comm_round=500 experiment.seed=$more
algorithm=dispfl algorithm.params.fair_budget=true experiment.seed=$more
LINES
keep paper
