# Sourced by train.sh and test.sh: one virtual environment, made once, renewed when
# pyproject.toml changes.

# $1: checkout. $2: run or dev (dev adds the test tools).
rlcli_setup() {
  if rlcli_is_set_up "$@"; then return; fi
  "${PYTHON:-python3}" - <<'CHECK' || return 2
import sys
if sys.version_info < (3, 11):
    sys.exit(f"error: rlcli needs Python 3.11 or newer, this is {sys.version.split()[0]}. "
             "Set PYTHON=/path/to/python3.11 and run again.")
CHECK
  rlcli_alone "$1" rlcli_install "$@"
}

rlcli_is_set_up() {
  local stamp="$1/.venv/.rlcli-$2"
  [ -f "$stamp" ] && cmp -s "$stamp" "$1/pyproject.toml"
}

rlcli_install() {
  local venv="$1/.venv" python="${PYTHON:-python3}"
  if rlcli_is_set_up "$@"; then return; fi
  if [ ! -x "$venv/bin/python" ]; then
    echo "setting up $venv (once, a few minutes)" >&2
    # a torch that is installed already, a CUDA build say, is used as it is
    if "$python" -c 'import torch' 2>/dev/null; then
      "$python" -m venv --system-site-packages "$venv" || return
    else
      "$python" -m venv "$venv" || return
    fi
  fi
  local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  "$venv/bin/python" -c 'import torch' 2>/dev/null || "${pip[@]}" torch==2.13.0 >&2 || return
  local target="$1"
  if [ "$2" = dev ]; then target="$1[dev]"; fi
  "${pip[@]}" -e "$target" >&2 && cp "$1/pyproject.toml" "$venv/.rlcli-$2"
}

# $1: checkout, then a command, which nobody else runs on this .venv meanwhile: machines that share
# a checkout start together. The lock goes with the last process that has it, however that ends.
rlcli_alone() {
  mkdir -p "$1/.venv"
  (
    "${PYTHON:-python3}" - "$1/.venv" <<'LOCK'
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print(f"waiting for another start that sets up {sys.argv[1]}", file=sys.stderr, flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:
    pass  # a disk without locks
LOCK
    "${@:2}"
  ) 9>>"$1/.venv/.rlcli-lock"
}

# $1: checkout, then the arguments of a run. Installs once the engines they ask for.
rlcli_add_engines() {
  local asked=" ${*:2} "
  case "$asked" in
    *" --engine deepspeed "* | *" --engine=deepspeed "* | *" train.engine=deepspeed "*)
      rlcli_add "$1" deepspeed "--engine torch" || return ;;
  esac
  case "$asked" in
    *"rollout.engine=vllm "* | *"rollout.engine=vllm_server "* | *"rollout.name=vllm "*)
      # without a GPU the native sampler does the same; scripts/install_vllm_cpu.sh is for trying it
      if command -v nvidia-smi >/dev/null; then
        rlcli_add "$1" vllm "rollout.engine=native" || return
      fi ;;
  esac
}

# $1: checkout. $2: an extra, which has the name of its package. $3: what goes without it.
rlcli_add() {
  if rlcli_has "$@" || rlcli_alone "$1" rlcli_install_extra "$@"; then return; fi
  echo "error: $2 could not be installed. Without it: $3." >&2
  return 2
}

rlcli_has() {
  "$1/.venv/bin/python" -c \
    'import importlib.util as u, sys; sys.exit(not u.find_spec(sys.argv[1]))' "$2"
}

rlcli_install_extra() {
  if rlcli_has "$@"; then return; fi
  echo "installing $2 into $1/.venv (once, some minutes)" >&2
  "$1/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$1[$2]" >&2
}

# $1: checkout. An environment with vLLM and the test tools; 1 where there can be none.
rlcli_setup_vllm() {
  local stamp="$1/.venv-vllm/.rlcli-test"
  if [ -f "$stamp" ] && cmp -s "$stamp" "$1/pyproject.toml"; then return; fi
  echo "setting up $1/.venv-vllm (once, a few minutes)" >&2
  RLCLI_EXTRAS="[test,deepspeed]" "$1/scripts/install_vllm_cpu.sh" "$1/.venv-vllm" >&2 || return 1
  cp "$1/pyproject.toml" "$stamp"
}
