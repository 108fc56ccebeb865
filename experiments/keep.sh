#!/usr/bin/env bash
# Writes the files to commit of the studies (folders with a study.json): all finished runs, their pages, docs/results.md,
# the table of experiments/codec_accuracy and the tables of the main README. It may run at any time, also during runs:
#   OUT=outputs/experiments bash experiments/keep.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-outputs/experiments}
for study in experiments/*/study.json; do
  folder=$(dirname "$study")
  name=$(basename "$folder")
  sources=()
  if [ -e "$folder/runs.json" ]; then sources+=("$folder/runs.json"); fi
  for sweep in "$out/$name"/runs*; do
    if [ -e "$sweep/sweep.json" ]; then sources+=("$sweep"); fi
  done
  if [ ${#sources[@]} -eq 0 ]; then continue; fi
  for search in "$out/$name"/tune*; do
    record=$folder/lr${search##*/tune}.json
    if [ -e "$search/choice.json" ]; then cp "$search/choice.json" "$record"; fi
  done
  "$python" -m ssfl.report.runs.collect --with-fedavg "${sources[@]}" "$folder/runs.json"
  "$python" -m ssfl.report.studies.study "$folder"
  if grep -q '<!-- claims of ' "$folder/README.md"; then
    "$python" -m ssfl.report.studies.study --insert "$folder" "$folder/README.md"
  fi
done
codecs=experiments/codec_accuracy  # its exact rows are those of the converged study
if [ -e $codecs/runs.json ]; then
  "$python" $codecs/bytes.py $codecs/runs.json experiments/cifar10_converged/runs.json >$codecs/bytes.md
fi
"$python" -m ssfl.report.studies.study --insert experiments/cifar10_converged README.md
"$python" -m ssfl.report.pages
