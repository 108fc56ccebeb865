# Sourced by the scripts of every experiment, which set `experiment` first. Environment:
#   SSFL_DATA_DIR  folder of the data sets (docs/data.md); default ./dataset
#   JOBS           cells at a time; default 2 for small runs, 1 at paper scale
#   LAUNCHER       local | submitit | ray; LAUNCHER_OPTIONS: KEY=VALUE words for it
#   OUT            folder of the runs; default outputs/experiments
#   PRESET, EXTRA  another preset, additional settings (a dry run: PRESET=digits EXTRA="training.comm_round=1 ...")
#   UNTUNED        1: use the learning rate 0.03 where no search has chosen one (dry runs only)
# A stopped script continues when it is started again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ssfl=${SSFL:-.venv/bin/ssfl}
python=${PYTHON:-.venv/bin/python}
data=${SSFL_DATA_DIR:-./dataset}
out=${OUT:-outputs/experiments}/$experiment
results=${RESULTS:-experiments/$experiment}

# sweep STAGE PRESET JOBS: all cells of the lines on standard input, as one sweep in $out/STAGE, without those that have
# finished in the committed results (runs.json), so that a study continues on another machine.
sweep() {
  local stage=$1 preset=${PRESET:-$2} jobs=${JOBS:-$3} option options=()
  if [ -e "$results/runs.json" ]; then options+=(--skip-finished "$results/runs.json"); fi
  for option in ${LAUNCHER_OPTIONS:-}; do options+=(--launcher-option "$option"); done
  mkdir -p "$out"
  cat >"$out/$stage.lines"
  # shellcheck disable=SC2086  # EXTRA is a list of words
  "$ssfl" sweep --jobs "$jobs" --launcher "${LAUNCHER:-local}" ${options[@]+"${options[@]}"} --into "$out/$stage" \
    --lines "$out/$stage.lines" "preset=$preset" "dataset.data_dir=$data" ${EXTRA:-}
}

# choose STAGE PRESET RECORD WORDS...: the best learning rate (or KEY) of every line on standard input, by accuracy on a
# held-out tenth of the training rows; written to $results/RECORD. WORDS apply to all lines.
choose() {
  local stage=$1 preset=${PRESET:-$2} record=$3 code=0
  shift 3
  mkdir -p "$out" "$results"
  cat >"$out/$stage.lines"
  # shellcheck disable=SC2086  # EXTRA is a list of words
  "$ssfl" sweep --jobs "${JOBS:-2}" --into "$out/$stage" --lines "$out/$stage.lines" --choose "${KEY:-lr}" \
    --by "${BY:-validation_accuracy}" \
    "preset=$preset" "dataset.data_dir=$data" dataset.validation_portion=0.1 "$@" ${EXTRA:-} ||
    code=$?
  if [ -e "$out/$stage/choice.json" ]; then cp "$out/$stage/choice.json" "$results/$record"; fi
  return $code  # not 0 if a trial failed; the record is there, with the values that did not
}

# search STAGE PRESET RECORD: `choose` as all studies use it: 40 rounds, over which the rate decays to 1/30, and a seed that
# no reported run uses.
search() {
  JOBS=${JOBS:-1} choose "$@" experiment.seed=1 training.comm_round=40 optimizer.lr_decay=0.9185 \
    training.frequency_of_the_test=40
}

# rate SETTING [RECORD]: the chosen learning rate of a setting (its words as in the line of the search), or of a
# method with only one searched setting. Without a chosen one the script ends, or with UNTUNED uses 0.03. Assign its
# output to a variable, so that a failure ends the script.
rate() {
  "$python" -m ssfl.report.studies.choice "${record_folder:-$results}/${2:-lr_small.json}" "$1" ${UNTUNED:+0.03} && return
  echo "run the tune script of this experiment first (UNTUNED=1 uses 0.03, for dry runs)" >&2
  return 1
}

# keep STAGE: collect the results of a stage in the file to commit, and print its table.
keep() {
  "$python" -m ssfl.report.runs.collect "$out/$1" "$results/results/$1/runs.json"
  "$ssfl" table "$results/results/$1" --paper "$experiment"
}
