#!/usr/bin/env bash
# Makes .venv and installs torch and the project in it; run again, it only looks whether anything has changed.
#
#   bash setup.sh                       run experiments
#   bash setup.sh --deploy              also Flower, for federations between real sites (Python 3.11 or newer)
#   bash setup.sh --dev                 also what the tests need, Flower included
#   bash setup.sh --with=images,wandb   also these extras: images, wandb, tensorboard, onnx, submitit, ray, fuzz
#   CUDA_VERSION=cu128 bash setup.sh    a given PyTorch build: cpu, cu126, cu128, ... (default: what fits the machine)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$1" >&2; exit "${2:-1}"; }

known=$(sed -n '/^\[project.optional-dependencies\]/,/^\[project.scripts\]/s/^\([a-z]*\) = \[.*/\1/p' pyproject.toml | tr '\n' ' ')
wanted=
for argument in "$@"; do
  case $argument in
    --deploy) wanted="$wanted deploy" ;;
    --dev) wanted="$wanted dev deploy" ;;
    --with=*) wanted="$wanted $(printf %s "${argument#--with=}" | tr , ' ')" ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "$argument: unknown option; there are --deploy, --dev and --with=EXTRAS, and CUDA_VERSION=cu128 in the environment" 2 ;;
  esac
done
for extra in $wanted; do
  case " $known" in *" $extra "*) ;; *) die "--with=$extra: no such extra; there are ${known% }" 2 ;; esac
done

# The backend is part of the stamp only when it was asked for: a plain second run keeps what the first one chose.
stamp_file=.venv/.setup-stamp
# A compiler that came later, or went, is a change too: the kernels of ssfl/native are built with it.
stamp() { { pwd; cat constraints.txt pyproject.toml setup.sh ssfl/native/*.[ch] ssfl/native/*/*.[ch]; .venv/bin/python -V; command -v "${CC:-cc}"; } | cksum; }
up_to_date() {
  [ -x .venv/bin/python ] && [ -f "$stamp_file" ] || return 1
  { read -r had_sum && read -r had_extras && read -r had_build; } < "$stamp_file" || return 1
  for extra in $wanted; do
    case " $had_extras " in *" $extra "*) ;; *) return 1 ;; esac
  done
  [ "$had_sum" = "$(stamp)" ] && [ "${CUDA_VERSION:-$had_build}" = "$had_build" ] &&
    .venv/bin/python -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "ssfl", "hydra"))))'
}
if up_to_date; then
  say "nothing to do: .venv is up to date"
  exit 0
fi
# Extras of earlier runs are installed again: the project's requirements may have changed.
extras=$(for extra in $wanted $(sed -n 2p "$stamp_file" 2> /dev/null); do
  case " $known" in *" $extra "*) printf '%s\n' "$extra" ;; esac
done | sort -u | tr '\n' ' ')
extras=${extras% }

# ---- Python >= 3.10, the one called python3 if it will do -------------------------------------------------------
new_enough='import sys; sys.exit(sys.version_info < (3, 10))'
python=
for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
  if command -v "$name" > /dev/null && "$name" -c "$new_enough" 2> /dev/null; then
    python=$("$name" -c 'import sys; print(sys.executable)')
    break
  fi
done

# ---- uv: the one on PATH, or one from pip ------------------------------------------------------------------------
if command -v uv > /dev/null && uv --version > /dev/null 2>&1; then
  uv=uv
elif [ -x .venv/bin/uv ]; then
  uv=.venv/bin/uv
else
  [ -n "$python" ] || die "no Python >= 3.10 and no uv found; install either of them"
  say "uv is missing: installing it with pip into .venv"
  # A virtual environment of its own is the one place that every Python lets pip write to.
  if "$python" -m venv .venv > /dev/null 2>&1 && .venv/bin/python -m pip install --quiet uv; then
    uv=.venv/bin/uv
  elif "$python" -m pip install --quiet --user uv; then
    uv="$("$python" -m site --user-base)/bin/uv"
  else
    die "uv could not be installed with pip; install uv by hand, then run setup.sh again"
  fi
fi
"$uv" --version > /dev/null || die "$uv does not run"
export UV_PYTHON_DOWNLOADS=${UV_PYTHON_DOWNLOADS:-never} UV_NO_PROGRESS=${UV_NO_PROGRESS:-1}
export VIRTUAL_ENV=$PWD/.venv

if ! { [ -x .venv/bin/python ] && .venv/bin/python -c "$new_enough" 2> /dev/null; }; then
  rm -rf .venv
  if [ -n "$python" ]; then
    "$uv" venv --quiet --python "$python" .venv
  else
    say "no Python >= 3.10 found: uv downloads one"
    UV_PYTHON_DOWNLOADS=automatic "$uv" venv --quiet --python 3.11 .venv
  fi
fi
say "$(.venv/bin/python -V) in .venv"
rm -f "$stamp_file"

# ---- torch: from PyTorch's own index, or the plain one where that cannot be reached ------------------------------
torch=$(grep -E '^torch==' constraints.txt)
build=${CUDA_VERSION:-auto}
install() { "$uv" pip install --quiet --constraint constraints.txt "$@"; }

# Options of pip that uv does not read: only used for the plain index.
pip_setting() { "${python:-.venv/bin/python}" -m pip config list 2> /dev/null | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | tail -n 1; }
use_pip_settings() {
  local links index
  links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
  index=${PIP_INDEX_URL:-$(pip_setting index-url)}
  if [ -n "$links" ]; then export UV_FIND_LINKS=${UV_FIND_LINKS:-${links// /,}}; fi
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
}

has_torch() { .venv/bin/python -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '${torch#torch==}')" 2> /dev/null; }
if [ -z "${CUDA_VERSION:-}" ] && has_torch; then
  say "$torch is there already"
else
  say "installing $torch (build: $build)"
  # A dry run first, with short patience: an index behind a firewall is found out in seconds, and the real
  # download keeps uv's normal patience.
  if seen=$(UV_HTTP_TIMEOUT=10 UV_HTTP_CONNECT_TIMEOUT=5 UV_HTTP_RETRIES=0 \
      "$uv" pip install --dry-run --no-deps --reinstall-package torch "$torch" --torch-backend="$build" 2>&1); then
    install "$torch" --torch-backend="$build" ${CUDA_VERSION:+--reinstall-package torch}
  else
    case $seen in
      *"invalid value"*) die "CUDA_VERSION=$build: no such PyTorch build; examples: cpu, cu126, cu128, cu130" 2 ;;
      *"No solution found"*) die "CUDA_VERSION=$build: PyTorch has no $torch of that build for this Python" 2 ;;
    esac
    say "PyTorch's own index cannot be reached: taking $torch from the plain package index, in the build it has"
    (use_pip_settings; install "$torch") || die "torch could not be installed: $torch is not to be had from any index"
  fi
fi

# ---- the project, editable: the code you edit is the code that runs ----------------------------------------------
project=.${extras:+[${extras// /,}]}
say "installing the project${extras:+ with the extras $extras}"
has_extra() { case " $extras " in *" $1 "*) ;; *) return 1 ;; esac; }
if has_extra deploy; then
  .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    say "Flower needs Python 3.11 or newer: ssfl deploy will not run here, all else does"
  # Without compiled bytecode every process of Flower's compiles it again: 10 s of CPU for each.
  export UV_COMPILE_BYTECODE=1
fi
# Built anew, since uv would take the build that a machine without a compiler had made.
again=(--reinstall-package ssfl --refresh-package ssfl --editable "$project")
install "${again[@]}" 2> /dev/null || (use_pip_settings; install "${again[@]}") || die "the project could not be installed"
if ! .venv/bin/python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("ssfl.native.kernels"))'; then
  say "the C kernels were not built (no C compiler, or no Python headers): everything runs, some of it slower"
fi
# Write the bytecode of what a run imports. Where PYTHONDONTWRITEBYTECODE is set, as in many containers, every start would
# compile PyTorch's modules again, for two seconds of CPU.
env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -c "import ssfl.cli, ssfl.assemble.lifecycle, ssfl.report.figures.run_figures, sklearn.datasets" ||
  die "the installed project cannot be imported"

printf '%s\n%s\n%s\n' "$(stamp)" "$extras" "$build" > "$stamp_file"
if has_extra dev; then
  say "done; try: .venv/bin/pytest"
else
  say "done; try: .venv/bin/python main.py preset=digits"
fi
