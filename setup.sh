# Sourced by train.sh and test.sh: one virtual environment, made once, renewed when
# pyproject.toml changes.

# $1: checkout. $2: run or dev (dev adds the test tools).
rlcli_setup() {
  local venv="$1/.venv" stamp="$1/.venv/.rlcli-$2" python="${PYTHON:-python3}"
  if [ -f "$stamp" ] && cmp -s "$stamp" "$1/pyproject.toml"; then return; fi
  "$python" - <<'CHECK' || return 2
import sys
if sys.version_info < (3, 11):
    sys.exit(f"error: rlcli needs Python 3.11 or newer, this is {sys.version.split()[0]}. "
             "Set PYTHON=/path/to/python3.11 and run again.")
CHECK
  if [ ! -x "$venv/bin/python" ]; then
    echo "setting up $venv (once, a few minutes)" >&2
    # a torch that is installed already, a CUDA build say, is used as it is
    if "$python" -c 'import torch' 2>/dev/null; then
      "$python" -m venv --system-site-packages "$venv"
    else
      "$python" -m venv "$venv"
    fi
  fi
  local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  "$venv/bin/python" -c 'import torch' 2>/dev/null || "${pip[@]}" torch==2.13.0 >&2
  local target="$1"
  if [ "$2" = dev ]; then target="$1[dev]"; fi
  "${pip[@]}" -e "$target" >&2
  cp "$1/pyproject.toml" "$stamp"
}

# $1: checkout, then the arguments of a run. Installs DeepSpeed once where they ask for it.
rlcli_add_deepspeed() {
  local python="$1/.venv/bin/python" target="$1[deepspeed]"
  case " ${*:2} " in
    *" --engine deepspeed "* | *" --engine=deepspeed "* | *" train.engine=deepspeed "*) ;;
    *) return 0 ;;
  esac
  if "$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("deepspeed"))'; then
    return 0
  fi
  echo "installing DeepSpeed into $1/.venv (once, about a minute)" >&2
  if ! "$python" -m pip install --quiet --disable-pip-version-check -e "$target" >&2; then
    echo "error: DeepSpeed could not be installed. Without it: --engine torch." >&2
    return 2
  fi
}
