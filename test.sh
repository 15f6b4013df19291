#!/usr/bin/env bash
# Sets up .venv beside this file where needed, then checks style and types and runs the tests.
# Without arguments those with real vLLM run first, in an environment of their own (.venv-vllm):
# it wants other versions of packages. The others run side by side, up to 4 files at a time.
# --newest runs the tests with the newest packages instead of the lock's, all but torch, in an
# environment of its own (.venv-newest). Other arguments go to pytest.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/setup.sh"
cd "$here"
export OMP_NUM_THREADS=1
side_by_side=(-n auto --maxprocesses 4 --dist loadfile)
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
if "$bin/pyright" --version >/dev/null 2>&1; then
  "$bin/pyright" --pythonpath "$bin/python"
else
  echo "types not checked: pyright could not fetch its checker (it needs the npm registry once)" >&2
fi
if [ $# -eq 0 ]; then
  if rlcli_setup_vllm "$here"; then
    "$here/.venv-vllm/bin/python" -m pytest tests/vllm
  else
    echo "not tested with vLLM: it could not be installed into $here/.venv-vllm" >&2
  fi
  set -- "${side_by_side[@]}"
fi
exec "$bin/python" -m pytest "$@"
