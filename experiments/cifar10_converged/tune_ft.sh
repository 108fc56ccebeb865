#!/usr/bin/env bash
# The learning rate of FedAvg-FT's fine-tuning, by the accuracy of the clients' own models on their held-out rows. Run
# tune.sh first.
# Writes lr_ft.json, which run.sh reads.
experiment=cifar10_converged
. "$(dirname "$0")/../common.sh"
dense=$(rate algorithm=fedavg lr.json)
KEY=fine_tune_lr BY=client_validation_accuracy search tune_ft cifar10_converged lr_ft.json <<LINES
algorithm=fedavg_ft optimizer.lr=$dense optimizer.fine_tune_lr=0.001,0.003
LINES
