#!/usr/bin/env bash
# Sets up .venv beside this file where needed, then checks style and types and runs the tests.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/setup.sh"
rlcli_setup "$here" dev
cd "$here"
bin="$here/.venv/bin"
export OMP_NUM_THREADS=1
"$bin/ruff" check .
"$bin/ruff" format --check .
if "$bin/pyright" --version >/dev/null 2>&1; then
  "$bin/pyright" --pythonpath "$bin/python"
else
  echo "types not checked: pyright could not fetch its checker (it needs the npm registry once)" >&2
fi
exec "$bin/python" -m pytest "$@"
