#!/usr/bin/env bash
# Sets up .venv beside this file where needed, then checks style and types and runs the tests.
# Without arguments those with real vLLM run first, in an environment of their own (.venv-vllm):
# it wants other versions of packages. The others run side by side, up to 4 files at a time.
# --fast checks style and runs the tests that neither start processes nor train.
# --newest runs the tests with the newest packages instead of the lock's, all but torch, in an
# environment of its own (.venv-newest). Other arguments go to pytest.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/setup.sh"
cd "$here"
export OMP_NUM_THREADS=1
by_file=(--dist loadfile --no-loadscope-reorder)
fast_side_by_side=(-n auto --maxprocesses 4 "${by_file[@]}")
# one more than there are cores: tests of processes that are lost spend much of their time waiting
cores="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)"
side_by_side=(-n "$((cores < 3 ? cores + 1 : 4))" "${by_file[@]}")
if [ "${1:-}" = --newest ]; then
  shift
  rlcli_setup_newest "$here"
  [ $# -gt 0 ] || set -- "${side_by_side[@]}"
  exec "$here/.venv-newest/bin/python" -m pytest "$@"
fi
rlcli_setup "$here" dev
bin="$here/.venv/bin"
"$bin/ruff" check .
"$bin/ruff" format --check .
if [ "${1:-}" = --fast ]; then
  shift
  echo "--fast leaves out types and vLLM"
  exec "$bin/python" -m pytest --fast "${fast_side_by_side[@]}" "$@"
fi
check_types() {
  if "$bin/pyright" --version >/dev/null 2>&1; then
    "$bin/pyright" --pythonpath "$bin/python"
  else
    echo "types not checked: pyright could not fetch its checker (it needs the npm registry once)" >&2
  fi
}
if [ $# -gt 0 ]; then
  check_types
  exec "$bin/python" -m pytest "$@"
fi
check_types &  # on a core of its own, while the first tests run
types=$!
trap 'kill "$types" 2>/dev/null || true' EXIT
if rlcli_setup_vllm "$here"; then
  "$here/.venv-vllm/bin/python" -m pytest tests/vllm
else
  echo "not tested with vLLM: it could not be installed into $here/.venv-vllm" >&2
fi
wait "$types"
"$bin/python" -m pytest "${side_by_side[@]}"
