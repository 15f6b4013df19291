#!/usr/bin/env bash
# Sets up .venv beside this file where needed, then runs `rlcli train` with every argument as given.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/setup.sh"
rlcli_setup "$here" run
rlcli_add_engines "$here" "$@"
exec "$here/.venv/bin/python" -m rlcli.cli.main train "$@"
