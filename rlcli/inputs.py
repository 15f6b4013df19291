"""What a run reads: data, models and reward, found and checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from rlcli import hub, preflight
from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.data.readers import read_rows
from rlcli.errors import ConfigError, DataError, ModelError, NotHere, RewardError
from rlcli.launch import check_processes, read_launch
from rlcli.machine import usable_cores

TRIED_GOLDS = 200
TRIED_ROWS = 20
MAX_BAD_GOLDS = 0.2
"""Share of ground truths that cannot be graded above which the data is refused."""


def refuse_early(resolved: Resolved, env: Mapping[str, str], *, is_dry: bool) -> None:
    """What needs neither torch nor data to be refused: a wrong setting costs no second.

    Raises: ConfigError.
    """
    checked = preflight.check_engines(preflight.check(resolved))
    launch = read_launch(checked.config, env)
    with suppress(NotHere) if is_dry else nullcontext():
        check_processes(
            checked,
            launch,
            num_processes=checked.config.train.n_gpus or 1,
            num_visible_gpus=None,
            num_cores=usable_cores(),
        )
    check_positions(checked)


def check_positions(resolved: Resolved) -> None:
    """Raises: ConfigError when the config.json on this machine says the lengths cannot fit."""
    model = resolved.config.model
    with suppress(ModelError):
        written = hub.find_model_config(model.path, hub=model.hub, offline=True)
        check_context(resolved, written.get("max_position_embeddings"))


def check_context(resolved: Resolved, positions: int | None) -> None:
    """Raises: ConfigError when prompt and response cannot fit the model's positions."""
    data = resolved.config.data
    total = data.max_prompt_tokens + data.max_response_tokens
    if positions is not None and total > positions:
        raise ConfigError(
            f"data.max_prompt_tokens + data.max_response_tokens = {total}, but the model has "
            f"{positions} positions.\nLower {resolved.where('data.max_response_tokens')} or "
            f"{resolved.where('data.max_prompt_tokens')}."
        )


def read_data(config: Config, files: Sequence[str]) -> list[Any]:
    """The rows of data files. Raises: DataError; DataNotFoundError where one is not here."""
    return read_rows(files, fields=config.data.fields)


def find_model(config: Config, path: str) -> Path:
    """The folder of a model. Raises: ModelError; ModelNotFoundError where it is not to be had."""
    return hub.find_model(path, hub=config.model.hub)


def find_reward_model(resolved: Resolved) -> Path | None:
    """The folder of reward.model; None without one, or where a server has it."""
    from rlcli.rewards import needs_model
    from rlcli.rewards.model_files import find_reward_files

    config = resolved.config
    if config.reward.model is None or not needs_model(config.reward):
        return None
    try:
        return find_reward_files(config.reward.model, source=config.model.hub)
    except ModelError as error:
        raise type(error)(str(error).replace("--model", "--reward_model")) from error


def check_rewards(
    resolved: Resolved,
    data: Sequence[Sequence[Any]],
    reward_dir: Path | None,
    env: Mapping[str, str],
    *,
    tries_golds: bool = True,
) -> list[str]:
    """Notes on the reward for the rows of each data set. Touches no network.

    tries_golds: whether a user's function is tried on ground truths of these rows.

    Raises: RewardError, or DataError where the ground truths of a set cannot be graded.
    """
    from rlcli.rewards import check_reward

    try:
        notes = check_reward(
            resolved.config.reward,
            {row.data_source for rows in data for row in rows},
            explicit=resolved.explicit,
            env=env,
            lang=resolved.config.run.lang,
            model_dir=reward_dir,
            rows=[row for rows in data for row in rows[:TRIED_ROWS] if tries_golds],
        )
    except RewardError as error:
        # the reward knows its name, and only the settings know who gave it
        fn = resolved.config.reward.fn
        said = str(error).replace(f"reward.fn={fn}", resolved.where("reward.fn"), 1)
        raise type(error)(said) from error
    return notes + [note for rows in data for note in _gold_notes(resolved.config, rows)]


def _gold_notes(config: Config, rows: Sequence[Any]) -> list[str]:
    """Golds are tried on a sample: parsing thousands of formulas would hold up every start."""
    from rlcli.rewards import gold_problems

    some = rows[:: max(1, len(rows) // TRIED_GOLDS)]
    golds = [(row.id, row.data_source, row.ground_truth) for row in some]
    problems = gold_problems(config.reward, golds)
    if not problems:
        return []
    found = f"{len(problems)} of {len(some)} ground truths tried cannot be graded: {problems[0]}"
    judge = config.reward.judge
    if judge.enabled and judge.rule_first:
        return [f"{found} The judge scores their rollouts."]
    if len(problems) > MAX_BAD_GOLDS * len(some):
        raise DataError(
            f"{found}\nMend these rows, or set reward.fn to a function that can grade them; "
            "rlcli data check FILE lists all of them."
        )
    return [f"{found} Their rollouts stay unscored."]


def find_critic(resolved: Resolved, model_dir: Path, model_config: Any) -> Path:
    """The folder of the critic's model. Raises: ModelError when it reads other token ids."""
    config = resolved.config
    if config.critic.path is None:
        return model_dir
    folder = find_model(config, config.critic.path)

    from rlcli.causal_lm import read_model_config

    trust = config.model.trust_remote_code
    critic = read_model_config(str(folder), trust_remote_code=trust).get_text_config()
    policy = model_config.get_text_config()
    if critic.vocab_size < policy.vocab_size:
        raise ModelError(
            f"{resolved.where('critic.path')} has a vocabulary of {critic.vocab_size} tokens, the "
            f"policy {policy.vocab_size}: they do not share a tokenizer.\n"
            "Choose a critic of the policy's family, or leave critic.path out."
        )
    return folder
