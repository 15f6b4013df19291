"""The commands and files of the guides, as printed there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from string import Template

GUIDES = Path(__file__).parents[1] / "config" / "guide_commands.txt"
ENV = {"HOME": "/home/ann"}


def commands() -> list[list[str]]:
    """The arguments of every command, its comments and shell variables taken out as bash would."""
    found: list[list[str]] = []
    for block in GUIDES.read_text(encoding="utf-8").split("===")[1:]:
        text = re.sub(r"\\[ \t]+#.*", r"\\", block)
        text = re.sub(r"\\\n", " ", text)
        names = dict(ENV)
        for line in text.splitlines()[1:]:
            line = Template(line).substitute(names)
            words = shlex.split(line, comments=True)
            if words[:1] == ["python3"]:
                found.append(words[3:])
            elif len(words) == 1 and "=" in words[0]:
                name, _, value = words[0].partition("=")
                names[name] = value
    return found


CONFIGS = {
    "grpo_config": """\
defaults:
  - ppo_trainer
  - _self_

algorithm:
  adv_estimator: grpo

actor_rollout_ref:
  rollout:
    n: 4
  actor:
    use_kl_loss: true
""",
    "ppo_config": """\
defaults:
  - ppo_trainer
  - _self_

algorithm:
  adv_estimator: gae
  gamma: 0.99
  lam: 0.95

critic:
  model:
    path: ${actor_rollout_ref.model.path}
""",
}
"""Files by the name they are used by: `--config-name`."""
