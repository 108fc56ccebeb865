#!/usr/bin/env bash
# What communication profiles and masks from coded scores cost in accuracy, beside the runs of ../cifar10_converged, which
# have exact values and scores: the same preset, learning rates and seeds, so the differences are paired. Those come first.
#   bash experiments/codec_accuracy/run.sh             whole rows (three seeds) in the order of their worth
#   bash experiments/codec_accuracy/run.sh harvest     keep what is finished so far, and its table
# Start it again after a stop and it continues. 17 minutes of one core a run (median).
experiment=codec_accuracy
. "$(dirname "$0")/../common.sh"
converged=experiments/cifar10_converged
if [ "${1:-}" = harvest ]; then
  earlier=()
  if [ -e "$results/runs.json" ]; then earlier=("$results/runs.json"); fi
  "$python" -m ssfl.report.runs.collect ${earlier[@]+"${earlier[@]}"} "$out/runs" "$results/runs.json"
  "$python" "$results/bytes.py" "$results/runs.json" "$converged/runs.json" >"$results/bytes.md"
  exit
fi
seeds=${SEEDS:-550,110,220}
record_folder=$converged
half="model.dense_ratio=0.5 optimizer.lr=$(rate "algorithm=ssfl model.dense_ratio=0.5" lr.json)"
lr=$(rate "algorithm=ssfl model.dense_ratio=0.1" lr.json)
tenth="model.dense_ratio=0.1 optimizer.lr=$lr"
twentieth="model.dense_ratio=0.05 optimizer.lr=$lr"
sweep runs cifar10_converged 1 <<LINES
$tenth communication.profile=small experiment.seed=$seeds
$half communication.profile=small experiment.seed=$seeds
$twentieth communication.profile=small experiment.seed=$seeds
$tenth communication.scores=factored experiment.seed=$seeds
$tenth communication.profile=balanced experiment.seed=$seeds
$tenth communication.scores=votes experiment.seed=$seeds
$tenth algorithm.params.saliency_fraction=0.1 experiment.seed=$seeds
$tenth communication.profile=small communication.scores=factored experiment.seed=$seeds
$half communication.scores=factored experiment.seed=$seeds
$half communication.profile=balanced experiment.seed=$seeds
$twentieth communication.profile=balanced experiment.seed=$seeds
$tenth communication.profile=small communication.error_feedback=true experiment.seed=$seeds
$tenth communication.profile=small communication.uplink_rounding=stochastic experiment.seed=$seeds
$tenth communication.profile=small communication.uplink_step=1.0 experiment.seed=$seeds
LINES
