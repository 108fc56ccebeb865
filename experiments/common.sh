# Read by the scripts of every experiment; they set `experiment` first. Environment:
#   SSFL_DATA_DIR  where the data sets lie (docs/data.md); default ./dataset
#   JOBS           cells at a time; default 2 for small runs, 1 at paper scale
#   LAUNCHER       local | submitit | ray; LAUNCHER_OPTIONS: KEY=VALUE words for it
#   OUT            where runs go; default outputs/experiments
#   PRESET, EXTRA  another preset, further words (a dry run: PRESET=digits EXTRA="training.comm_round=1 ...")
# A script that was stopped goes on where it was when it is started again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ssfl=${SSFL:-.venv/bin/ssfl}
python=${PYTHON:-.venv/bin/python}
data=${SSFL_DATA_DIR:-./dataset}
out=${OUT:-outputs/experiments}/$experiment
results=${RESULTS:-experiments/$experiment}

# sweep STAGE PRESET JOBS: all cells of the lines on standard input, as one sweep in $out/STAGE.
sweep() {
  local stage=$1 preset=${PRESET:-$2} jobs=${JOBS:-$3} option options=()
  for option in ${LAUNCHER_OPTIONS:-}; do options+=(--launcher-option "$option"); done
  mkdir -p "$out"
  cat >"$out/$stage.lines"
  # shellcheck disable=SC2086  # EXTRA is a list of words
  "$ssfl" sweep --jobs "$jobs" --launcher "${LAUNCHER:-local}" ${options[@]+"${options[@]}"} --into "$out/$stage" \
    --lines "$out/$stage.lines" "preset=$preset" "dataset.data_dir=$data" ${EXTRA:-}
}

# rate METHOD DEFAULT: the learning rate that tune_small.sh chose.
rate() { "$python" -m ssfl.report.tune get "$results/lr_small.json" "$1" "$2"; }

# keep STAGE: what is committed of a stage, and its table.
keep() {
  mkdir -p "$results/results"
  "$python" -m ssfl.report.collect "$out/$1" "$results/results/$1"
  "$ssfl" table "$results/results/$1" --paper "$experiment"
}
