"""Check which API keys are set; their values are never shown."""

from __future__ import annotations

from collections.abc import Mapping

from rlcli.rewards.judge.providers import PROVIDERS
from rlcli.system.finding import Finding

KEYS = {
    **{name: provider.keys for name, provider in PROVIDERS.items()},
    "hugging face": ("HF_TOKEN",),
    "wandb": ("WANDB_API_KEY",),
}
"""Service -> accepted environment variables."""


def key_findings(env: Mapping[str, str]) -> list[Finding]:
    """One line per service. An empty variable counts as unset; training needs no key."""
    findings = []
    for service, names in KEYS.items():
        held = [name for name in names if env.get(name, "").strip()]
        torn = [name for name in held if env[name] != env[name].strip()]
        if torn:
            says = f"{', '.join(torn)} has a space or a line break around it"
            cure = f"set {torn[0]} again without it"
            findings.append(Finding(f"key: {service}", "warn", says, cure))
        elif held:
            says = f"{' and '.join(held)} {'are' if len(held) > 1 else 'is'} set"
            findings.append(Finding(f"key: {service}", "ok", says))
        else:
            findings.append(Finding(f"key: {service}", "ok", f"{' or '.join(names)} is not set"))
    return findings
