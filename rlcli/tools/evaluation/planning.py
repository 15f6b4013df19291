"""Resolve and check model, data and reward of an evaluation before loading weights."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli.config.resolved import Resolved, with_values
from rlcli.config.rewards import RewardConfig
from rlcli.config.schema import Config, defaults
from rlcli.data.prompts import EncodedPrompts, encode_prompts
from rlcli.data.readers import Row
from rlcli.envs.agent_run import Agent
from rlcli.envs.run import Environment, find_environment, needs_scorer, without_data
from rlcli.errors import (
    ConfigError,
    DataError,
    DeviceNotFoundError,
    ModelError,
    ModelNotFoundError,
    RunDirError,
)
from rlcli.hub import BUILTIN
from rlcli.run_dir.checkpoint import step_of
from rlcli.run_dir.folder import RunDir, find_run, is_run, list_runs
from rlcli.setup.resources import (
    chat_format,
    check_context,
    check_rewards,
    check_tags,
    check_token_ids,
    find_model,
    find_reward_model,
    load_val,
    open_dialogue,
    open_model,
)
from rlcli.tools.load_policy import find_checkpoint, model_folder
from rlcli.trainer.run_plan import choose_device
from rlcli.types import Prompt

if TYPE_CHECKING:
    import torch

    from rlcli.envs.dialogue import Dialogue

OPTION_OF = {"data.val": "data", "data.fields": "field", "reward.fn": "reward"}
"""Setting -> option, if their names differ."""
ANY_LENGTH = 2**20
"""Maximum prompt tokens if a model states no number of positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be evaluated. Absent values are those of the run, else the schema's.

    settings: dotted key to a checked value, of options that stand for a run's setting.
    """

    target: str
    k: tuple[int, ...] = (1,)
    n: int | None = None
    temperature: float | None = None
    step: int | None = None
    limit: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPlan:
    """Everything known before a weight is loaded. checkpoint: None for a model that is no run's.

    folder: of the model before the checkpoint's weights are put into it.
    """

    model: str
    config: Config
    checkpoint: Path | None
    folder: Path
    model_config: Any
    tokenizer: Any
    environment: Environment | Agent | None
    dialogue: Dialogue | None
    prompts: Sequence[Prompt]
    dropped: int
    device: torch.device
    reward_dir: Path | None
    k: tuple[int, ...]
    n: int
    temperature: float
    notes: list[str]


def plan_evaluation(request: Request, cwd: Path, env: Mapping[str, str]) -> EvalPlan:
    """Target, data, model config and reward, all checked against each other.

    Raises: UsageError with the cure.
    """
    n, temperature = _samples(request)
    resolved, checkpoint, model = _settings(request, cwd)
    config = resolved.config
    device = _device(config)
    environment = find_environment(resolved)
    if environment is not None:
        _check_given(request, config, environment)
    rows = load_val(config, environment, limit=request.limit)
    if not rows:
        raise ConfigError(f"{request.target} names no data of its own. Add --data FILE.")
    reward_dir = find_reward_model(resolved)
    data = [rows] if needs_scorer(config, environment) else []
    reward_notes = check_rewards(resolved, data, reward_dir, env) if data else []
    folder = model_folder(config, checkpoint) if checkpoint else _model_dir(config)
    opened = open_model(config, folder, "read", where=model)
    if checkpoint is None:
        resolved = _fit_lengths(resolved, opened.positions, request.settings)
        config = resolved.config
    check_context(resolved, opened.positions)
    reward_notes += check_tags(config, opened.tokenizer, data) if data else []
    dialogue = open_dialogue(config, environment, opened)
    encoded = _encode(config, rows, opened.tokenizer, environment)
    check_token_ids(encoded.prompts, opened)
    return EvalPlan(
        model=model,
        config=config,
        checkpoint=checkpoint,
        folder=folder,
        model_config=opened.config,
        tokenizer=opened.tokenizer,
        environment=environment,
        dialogue=dialogue,
        prompts=encoded.prompts,
        dropped=encoded.dropped,
        device=device,
        reward_dir=reward_dir,
        k=request.k,
        n=n,
        temperature=temperature,
        notes=[*resolved.notes, *reward_notes, *encoded.notes],
    )


def _check_given(request: Request, config: Config, environment: Environment | Agent) -> None:
    """Raises: ConfigError for options that the run's environment leaves no room for."""
    for key in ("data.val", "data.fields"):
        if request.settings.get(key) and without_data(config):
            raise ConfigError(
                f"--{OPTION_OF[key]} cannot be used: {config.env.target}, the environment of "
                f"{request.target}, makes its tasks.\nRemove it; --limit takes fewer of them."
            )
    if "reward.fn" in request.settings and environment.facts.scores:
        raise ConfigError(
            f"--reward cannot be used: {config.env.target}, the environment of {request.target}, "
            "gives the reward.\nRemove it."
        )


def plan_policy(request: Request, cwd: Path) -> EvalPlan:
    """The target's model without data and reward, to sample from.

    Raises: UsageError with the cure.
    """
    temperature = 1.0 if request.temperature is None else request.temperature
    _check_temperature(temperature)
    resolved, checkpoint, model = _settings(request, cwd)
    device = _device(resolved.config)
    in_run = checkpoint is not None
    folder = model_folder(resolved.config, checkpoint) if in_run else _model_dir(resolved.config)
    opened = open_model(resolved.config, folder, "read", where=model)
    if not in_run:
        resolved = _fit_lengths(resolved, opened.positions, request.settings)
    check_context(resolved, opened.positions)
    return EvalPlan(
        model=model,
        config=resolved.config,
        checkpoint=checkpoint,
        folder=folder,
        model_config=opened.config,
        tokenizer=opened.tokenizer,
        environment=None,
        dialogue=None,
        prompts=(),
        dropped=0,
        device=device,
        reward_dir=None,
        k=request.k,
        n=1,
        temperature=temperature,
        notes=resolved.notes,
    )


def _encode(
    config: Config, rows: Sequence[Row], tokenizer: Any, environment: Environment | Agent | None
) -> EncodedPrompts:
    """Raises: DataError with a cure that this command knows."""
    data = config.data
    try:
        return encode_prompts(
            rows,
            tokenizer,
            max_prompt_tokens=data.max_prompt_tokens,
            filter_overlong=data.filter_overlong,
            truncation=data.truncation,
            chat=chat_format(config, environment),
        )
    except DataError as error:
        first, _, cure = str(error).partition("\n")
        if "data.truncation" not in cure:
            raise
        raise DataError(f"{first}\nRaise --max_prompt_tokens, or remove these rows.") from error


def _samples(request: Request) -> tuple[int, float]:
    """(n, temperature). Raises: ConfigError where pass@k cannot be had from them."""
    largest = max(request.k)
    n = largest if request.n is None else request.n
    if n < largest:
        raise ConfigError(f"--k {largest} needs as many responses per prompt, got --n {n}.")
    temperature = request.temperature
    if temperature is not None:
        _check_temperature(temperature)
    if temperature == 0 and n > 1:
        raise ConfigError(
            f"--temperature 0 samples the same response {n} times (n={n}).\n"
            "Give a temperature above 0, or --k 1 without --n."
        )
    if temperature is None:
        temperature = 0.0 if n == 1 else 1.0
    return n, temperature


def _check_temperature(temperature: float) -> None:
    """Raises: ConfigError unless it is a number from 0."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"--temperature {temperature}: expected a number from 0, such as 1.")


def _settings(request: Request, cwd: Path) -> tuple[Resolved, Path | None, str]:
    """(settings, checkpoint or None, what is evaluated)."""
    run, step = _find_target(request, cwd)
    checkpoint = None
    if run is None:
        config, origin, model = Config(), "default", request.target
        config = with_values(config, {"model.path": request.target, "data.val": []})
    else:
        config, origin = RunDir(run).config(), f"run {run}"
        checkpoint = find_checkpoint(run, step)
        model = str(checkpoint)
    sources = dict.fromkeys(defaults(), origin)
    for key in request.settings:
        sources[key] = f"flag --{OPTION_OF.get(key, key.rpartition('.')[2])}"
    config = with_values(config, request.settings)
    if "reward.fn" in request.settings:
        kept = {"keep_special_tokens", "unsafe_code_execution", "timeout_s", "workers", "fn"}
        config = config.model_copy(
            update={"reward": RewardConfig(**config.reward.model_dump(include=kept))}
        )
    resolved = Resolved(config=config, sources=sources, notes=[], explicit=frozenset())
    return resolved, checkpoint, model


def _find_target(request: Request, cwd: Path) -> tuple[Path | None, int | None]:
    """(run and step that the target names), or no run where it names a model.

    Raises: RunDirError, ConfigError.
    """
    text = request.target
    path = (cwd / os.path.expanduser(text)).resolve()
    run = path.parent if path.name == "checkpoints" else path.parent.parent
    if "checkpoints" in (path.name, path.parent.name) and is_run(run):
        step = step_of(path)
        if step is not None and request.step not in (None, step):
            raise ConfigError(f"--step {request.step}, but {text} is of step {step}. Keep one.")
        if step is not None or path.name in ("checkpoints", "final"):
            return find_run(str(run), cwd.resolve()), request.step if step is None else step
    if text == "latest":
        return find_run(text, cwd), request.step
    for folder in (path, (cwd / "outputs" / text).resolve()):
        if is_run(folder):
            return find_run(str(folder), cwd.resolve()), request.step
    is_name = text.count("/") == 1 or text.startswith((".", "/", "~", BUILTIN))
    if not (_has_model(path) if path.is_dir() else is_name):
        raise _unknown_target(text, cwd)
    if request.step is not None:
        raise ConfigError(f"--step {request.step} needs a run, and {text} is a model.")
    return None, None


def _has_model(folder: Path) -> bool:
    names = ("config.json", "adapter_config.json")
    return any((folder / name).is_file() for name in names)


def _unknown_target(text: str, cwd: Path) -> RunDirError:
    close = difflib.get_close_matches(text, [run.name for run in list_runs(cwd / "outputs")], n=1)
    hint = f"Nearest run: {close[0]}." if close else "rlcli runs list shows the runs."
    return RunDirError(
        f"{text!r} is neither a run nor a model. {hint}\n"
        "A model is a directory with config.json, OWNER/NAME on a hub, or builtin:quickstart."
    )


def _model_dir(config: Config) -> Path:
    path = config.model.path
    try:
        return find_model(config, path)
    except ModelError as error:
        said = str(error).replace("--preset quickstart", "builtin:quickstart")
        kind = ModelNotFoundError if isinstance(error, ModelNotFoundError) else ModelError
        raise kind(said.replace("--model ", "")) from error


def _device(config: Config) -> torch.device:
    try:
        return choose_device(config)
    except DeviceNotFoundError as error:
        raise DeviceNotFoundError(str(error).replace("train.device=", "--device ")) from error


def _fit_lengths(resolved: Resolved, positions: int | None, given: Mapping[str, Any]) -> Resolved:
    """Responses in at most half of the positions of a model, prompts in what is left of them."""
    data = resolved.config.data
    response = data.max_response_tokens
    if "data.max_response_tokens" not in given and positions is not None:
        response = max(1, min(response, positions // 2))
    prompt = data.max_prompt_tokens
    if "data.max_prompt_tokens" not in given:
        prompt = ANY_LENGTH if positions is None else max(1, positions - response)
    values = {"data.max_response_tokens": response, "data.max_prompt_tokens": prompt}
    return resolved.override(values)
