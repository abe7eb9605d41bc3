#!/usr/bin/env bash
# Brings .venv up to date with requirements/{cpu,dev}.txt and pyproject.toml. `make setup` calls it.
#
# What .venv holds is remembered as digests inside it, written when a step has succeeded: an interrupted set-up
# leaves none and starts over, a finished one costs a fraction of a second. Contents count, not times of
# modification, which a fresh checkout resets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly LOG=build/setup.log
readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
unset PYTHONPATH PYTHONHOME # would let packages from elsewhere into .venv
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

fail() {
    echo "setup: $*" >&2
    exit 1
}

# phase TITLE COMMAND...: one line on the terminal, everything else in the log.
phase() {
    local title=$1 begin=$SECONDS
    shift
    printf 'setup: %s ... ' "$title"
    printf '\n=== %s\n' "$title" >>"$LOG"
    if ! "$@" >>"$LOG" 2>&1; then
        printf 'failed\n'
        tail -n 20 "$LOG" >&2
        fail "'$title' failed; the whole log is $LOG"
    fi
    printf '%d s\n' $((SECONDS - begin))
}

# Prints the interpreter to build .venv from: $PYTHON, or else the tested version before others. An active virtual
# environment, which may be the .venv about to be replaced, stands for the Python that it was made from.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13 python3.14}; do
        "$candidate" -c 'import sys; assert (3, 11) <= sys.version_info[:2] < (3, 15); print(sys._base_executable)' \
            2>/dev/null && return
    done
    fail "needs Python 3.11 to 3.14 (tested with 3.11), but ${PYTHON:-python3} is" \
        "$("${PYTHON:-python3}" --version 2>/dev/null || echo 'not there'): install one, or say make PYTHON=/path/to/python3.11"
}

check_machine() {
    case $PWD$HOME in *[[:space:]]*)
        fail "the project's path and the home directory must not contain spaces, which compilers' build files cannot quote: $PWD, $HOME" ;;
    esac
    [ "$(uname -s)" = Linux ] || fail "the pinned stack is for Linux; this is $(uname -s)"
    command -v "${CXX:-g++}" >/dev/null || fail "needs a C++ compiler, g++ or the one named by CXX (Debian, Ubuntu: apt install g++)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)"
}

install_torch() {
    local pin
    pin=$(grep '^torch==' requirements/cpu.txt)
    .venv/bin/python -m pip install --no-deps "$pin" && return
    echo "--- not in the configured places: once more with PyTorch's own index, for this one wheel"
    .venv/bin/python -m pip install --no-deps --extra-index-url "$TORCH_CPU_INDEX" "$pin"
}

done_before() { [ -x .venv/bin/python ] && [ "$(cat ".venv/.setup-$1" 2>/dev/null)" = "$2" ]; }
mark_done() { echo "$2" >".venv/.setup-$1.tmp" && mv ".venv/.setup-$1.tmp" ".venv/.setup-$1"; }

python=$(find_python)
check_machine
mkdir -p build
# Two terminals may say `make` at the same time.
exec 9>build/setup.lock
flock -n 9 || { echo "setup: another set-up is at work here, waiting for it" && flock 9; }

stack=$({ cat requirements/cpu.txt requirements/dev.txt && "$python" -VV && pwd -P; } | sha256sum)
project=$(sha256sum <pyproject.toml)

if ! done_before stack "$stack"; then
    : >"$LOG"
    rm -f .venv/.setup-*
    phase "virtual environment .venv with $("$python" --version)" "$python" -m venv --clear .venv
    phase "torch, CPU build" install_torch
    phase "the pinned packages, about 4 GB and 3 minutes" \
        .venv/bin/python -m pip install --no-deps -r requirements/cpu.txt -r requirements/dev.txt
    mark_done stack "$stack"
fi
if ! done_before project "$project"; then
    phase "the project itself" .venv/bin/python -m pip install --no-deps --no-build-isolation -e .
    mark_done project "$project"
fi
