#!/usr/bin/env bash
# Two classes a client at paper scale: the CIFAR-10 recipe.
# For an accelerator (device and executor are chosen by themselves). Every cell writes checkpoints; start the script
# again after a stop, on this machine or another with the same OUT, and it goes on. Most wanted cells come first.
# The paper's five seeds are unknown: 550 is the one shown, 110 and 220 stand in an ancestor's scripts, 330 and 440 are ours.
experiment=cifar10_patho2
. "$(dirname "$0")/../common.sh"
more=${SEEDS:-110,220,330,440}
sweep paper cifar10_patho2 1 <<LINES
algorithm=ssfl,fedavg,sparsyfed experiment.seed=550
algorithm=dispfl algorithm.params.fair_budget=true experiment.seed=550
algorithm=ssfl,fedavg,sparsyfed,fedavg_ft experiment.seed=$more
algorithm=dispfl algorithm.params.fair_budget=true experiment.seed=$more
LINES
keep paper
