"""Finds and checks the data, models and reward of a run before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcli import hub
from rlcli.config.resolved import Resolved
from rlcli.config.schema import Config
from rlcli.data.readers import Reading, Row, Scan, read_scan
from rlcli.data.rendering import ChatFormat
from rlcli.data.sets import Key, hold_out, is_held_out, overlap_notes, repeat_notes, row_key
from rlcli.distributed.process_count import check_processes, read_node
from rlcli.envs.agent_run import Agent
from rlcli.envs.run import Environment, build_dialogue
from rlcli.errors import (
    ConfigError,
    DataError,
    MissingResourceError,
    ModelError,
    ModelNotFoundError,
    RewardError,
)
from rlcli.models.weight_files import (
    Use,
    check_merge,
    check_quantization,
    has_weight_files,
    positions_of,
    quantization_of,
)
from rlcli.setup import checks
from rlcli.setup.start_model import find_start, plain_path
from rlcli.system.hardware import usable_cores

if TYPE_CHECKING:
    from rlcli.envs.dialogue import Dialogue

LOAD_CHECK_NOTE = (
    "no weights were loaded: whether they are finite, and whether sampler and trainer agree on "
    "them, is checked when training starts."
)
NO_WEIGHTS_NOTE = "weights are not on this machine: their files are checked once they are."
TRIED_GOLDS = 200
TRIED_ROWS = 20
MAX_BAD_GOLDS = 0.2
"""Share of ground truths that cannot be graded above which the data is refused."""


def refuse_early(
    resolved: Resolved, env: Mapping[str, str], *, is_dry: bool, is_rank: bool = False
) -> None:
    """Checks that need neither torch nor data, so that bad settings fail fast.

    is_rank: whether a launcher started this process. Raises: ConfigError.
    """
    checked = checks.check_engines(checks.check(resolved))
    if not is_rank:
        read_node(checked.config, env)
        with suppress(MissingResourceError) if is_dry else nullcontext():
            check_processes(
                checked,
                env,
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
        check_context(resolved, positions_of(written))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainData:
    """Training rows, rows held out from data.train for evaluation, and remarks on them."""

    rows: list[Row]
    held_out: list[Row]
    notes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data(TrainData):
    """Training data and the rows to evaluate on."""

    val: list[Row]


def load_data(config: Config, environment: Environment | Agent | None = None) -> Data:
    """All rows of a run. Raises: DataError; DataNotFoundError if a file is missing.

    environment: makes the rows of a run without data, and begins those of a run with data.
    """
    if environment is None:
        return _load_files(config)
    if not config.data.train:
        made = environment.rows(config)
        return Data(rows=made.train, held_out=[], val=made.val, notes=made.notes)
    found = _load_files(config)
    rows, val = environment.begin(found.rows, config), environment.begin(found.val, config)
    return replace(found, rows=rows, val=val)


def _load_files(config: Config) -> Data:
    train = load_train(config)
    if is_held_out(config.data.val) or not config.data.val:
        val, notes = limit_val(config, train.held_out), train.notes
    else:
        scan = _read(config, config.data.val)
        val = limit_val(config, scan.rows)
        notes = [*train.notes, *scan.notes, *overlap_notes(train.rows, val, key=task_key(config))]
    return Data(rows=train.rows, held_out=train.held_out, val=val, notes=notes)


def load_train(config: Config) -> TrainData:
    """Rows to train on; none where an environment makes them. Raises: as `load_data`."""
    if config.env.path is not None and not config.data.train:
        return TrainData(rows=[], held_out=[], notes=[])
    scan = _read(config, config.data.train)
    key = task_key(config)
    notes = [*scan.notes, *repeat_notes(scan.rows, key=key)]
    if not is_held_out(config.data.val):
        return TrainData(rows=scan.rows, held_out=[], notes=notes)
    split = hold_out(scan.rows, key=key)
    if split.held_out:
        notes.append(
            f"{len(split.held_out)} prompts of data.train are held out to evaluate on and not "
            "trained on. data.val=FILE names other data, data.val=[] evaluates on none."
        )
    else:
        notes.append(
            f"nothing is evaluated: data.train has {len(scan.rows)} rows, too few to hold some "
            "out. data.val=FILE (--val_data) names data to evaluate on."
        )
    return TrainData(rows=split.train, held_out=split.held_out, notes=notes)


def task_key(config: Config) -> Key | None:
    """Rows of one task: an environment sees the whole row, not its prompt alone."""
    return row_key if config.env.path is not None else None


def load_val(
    config: Config, environment: Environment | Agent | None = None, *, limit: int | None = None
) -> list[Row]:
    """The first `limit` rows to evaluate on; [] if data.val is empty. Raises: as `load_data`."""
    if environment is None:
        return _file_val(config)[:limit]
    if config.data.train:
        return environment.begin(_file_val(config)[:limit], config)
    return environment.rows(config, only_val=True, limit=limit).val


def _file_val(config: Config) -> list[Row]:
    """The rows of files to evaluate on."""
    if not config.data.val:
        return []
    if is_held_out(config.data.val):
        return limit_val(config, load_train(config).held_out)
    return limit_val(config, read_data(config, config.data.val))


def limit_val(config: Config, rows: list[Row]) -> list[Row]:
    """The first data.val_limit rows, or all without a limit."""
    limit = config.data.val_limit
    return rows[:limit] if limit > 0 else rows


def read_data(config: Config, files: Sequence[str], *, base: Path | None = None) -> list[Row]:
    """The rows of data files. Raises: DataError; DataNotFoundError if one is missing."""
    return _read(config, files, base=base).rows


def _read(config: Config, files: Sequence[str], *, base: Path | None = None) -> Scan:
    data = config.data
    reading = Reading(
        fields=data.fields,
        template=data.prompt_template,
        drop_last_assistant=data.drop_last_assistant,
    )
    return read_scan(files, reading, base=base)


def chat_format(config: Config, environment: Environment | Agent | None = None) -> ChatFormat:
    """Options for rendering this run's messages. environment: its tools are shown."""
    data = config.data
    kwargs = data.chat_template_kwargs
    if environment is not None and environment.facts.schemas:
        kwargs = {**kwargs, "tools": [*environment.facts.schemas]}
    return ChatFormat(system_prompt=data.system_prompt, template_kwargs=kwargs)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model folder that passed every check that reads no weights.

    config: of transformers. positions: longest sequence in tokens; None if there is no limit.
    embeddings: number of token embeddings.
    """

    folder: Path
    config: Any
    tokenizer: Any
    positions: int | None
    embeddings: int


def open_model(config: Config, folder: Path, use: Use, *, where: str) -> OpenedModel:
    """Configuration and tokenizer of a model, checked against the headers of its weight files.

    `train`, its dry run, `plan` and `eval` all call this. where: the setting that names the model.

    Raises: ModelError if the model is quantised, no language model, lacks weights or an end token,
    or has a tokenizer of another model.
    """
    from rlcli.models.causal_lm import eos_token_ids, load_tokenizer, read_model_config

    trust = config.model.trust_remote_code
    model_config = read_model_config(str(folder), trust_remote_code=trust)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=trust)
    embeddings = _check_build(folder, model_config, use, trust_remote_code=trust, where=where)
    ends = eos_token_ids(str(folder), tokenizer, model_config)
    if min(ends) >= embeddings:
        raise ModelError(
            f"{where} ends a response with token {min(ends)}, and has {embeddings} tokens: it can "
            "never end one.\nCorrect eos_token_id in its config.json and generation_config.json."
        )
    added = set(getattr(tokenizer, "added_tokens_decoder", {}))
    largest = max((id for id in tokenizer.get_vocab().values() if id not in added), default=-1)
    if largest >= embeddings:
        raise ModelError(
            f"{where} has {embeddings} token embeddings, and its tokenizer has ids up to "
            f"{largest}: it is the tokenizer of another model.\n"
            "Copy the tokenizer files that belong to these weights into the folder."
        )
    if use == "adapters":
        from rlcli.engines.lora import check_lora

        values = hub.read_config(folder)
        if config.run.merge_lora:
            check_merge(values, where=where)
        if quantization_of(values) is None:
            check_lora(model_config, config.lora, trust_remote_code=trust)
    positions = positions_of(model_config.get_text_config().to_dict())
    return OpenedModel(
        folder=folder,
        config=model_config,
        tokenizer=tokenizer,
        positions=positions,
        embeddings=embeddings,
    )


def open_dialogue(
    config: Config, environment: Environment | Agent | None, model: OpenedModel
) -> Dialogue | None:
    """The turns of the model's tokenizer. Raises: ModelError if its template has none."""
    if environment is None:
        return None
    from rlcli.models.causal_lm import eos_token_ids

    ends = eos_token_ids(str(model.folder), model.tokenizer, model.config)
    return build_dialogue(config, environment, model.tokenizer, end_ids=ends)


def _check_build(
    folder: Path,
    model_config: Any,
    use: Use,
    *,
    trust_remote_code: bool,
    where: str,
    needs_head: bool = True,
) -> int:
    """Token embeddings of the model. Raises: ModelError if its weights cannot be loaded."""
    from rlcli.models.loading import build_empty

    values = hub.read_config(folder)
    check_quantization(values, use, where=where)
    if quantization_of(values) is not None:  # its files hold packed weights
        return model_config.get_text_config().vocab_size
    return build_empty(
        str(folder), model_config, trust_remote_code=trust_remote_code, needs_head=needs_head
    )


def check_token_ids(prompts: Sequence[Any], model: OpenedModel) -> None:
    """Raises: ModelError if a prompt has a token that the model has no embedding for."""
    largest = max((id for prompt in prompts for id in prompt.token_ids), default=-1)
    if largest >= model.embeddings:
        token = model.tokenizer.convert_ids_to_tokens(largest)
        raise ModelError(
            f"prompts have the token {token} (id {largest}), and {model.folder} has "
            f"{model.embeddings} token embeddings.\nResize them: "
            "model.resize_token_embeddings(len(tokenizer)), or remove the token from the chat "
            "template or the data."
        )


def check_local_models(resolved: Resolved) -> list[str]:
    """Check policy and critic if their files are on this machine; returns notes.

    Raises: ModelError as `open_model`.
    """
    config = resolved.config
    paths = {"model.path": config.model.path, "critic.path": config.critic.path}
    is_open = True
    for key, path in paths.items():
        if path is None or path.startswith(hub.BUILTIN):
            continue
        use: Use = "adapters" if config.lora.rank and key == "model.path" else "train"
        is_open &= _check_local(config, path, use, where=resolved.where(key))
    return [] if is_open else [NO_WEIGHTS_NOTE]


def _check_local(config: Config, path: str, use: Use, *, where: str) -> bool:
    """Check a model if its weights are on this machine; returns whether they are."""
    try:
        path = plain_path(path, source=config.model.hub)
        values = hub.find_model_config(path, hub=config.model.hub, offline=True)
        check_quantization(values, use, where=where)
        folder = hub.find_local(path)
        if folder is not None and not has_weight_files(folder):
            return False
        folder = hub.find_model(path, hub=config.model.hub, offline=True)
    except ModelNotFoundError:
        return False
    open_model(config, folder, use, where=where)
    return True


def find_model(config: Config, path: str, *, merges: bool = True) -> Path:
    """The folder of a model, a run's final model, or an adapter merged into its base.

    merges: False skips the adapter, for checks that need no weights.

    Raises: ModelError; ModelNotFoundError if it is found neither locally nor on the hub.
    """
    trust = config.model.trust_remote_code
    return find_start(path, source=config.model.hub, trust_remote_code=trust, merges=merges)


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


def check_tags(config: Config, tokenizer: Any, data: Sequence[Sequence[Any]]) -> list[str]:
    """Notes on tags that are missing from responses because they are special tokens.

    Raises: RewardError if a rule needs them.
    """
    from rlcli.rewards.rules.format import FORM_TAGS

    special = [tag for tag in FORM_TAGS if tag not in _decoded(tokenizer, tag)]
    if not special or config.reward.keep_special_tokens:
        return []
    from rlcli.rewards import rules_in_use

    found = ", ".join(special)
    if "format" in rules_in_use(config.reward, {row.data_source for rows in data for row in rows}):
        raise RewardError(
            f"{found} are special tokens of the tokenizer, so rewards do not see them, and no "
            "response can have the form that the rule format wants.\n"
            "Set reward.keep_special_tokens=true."
        )
    return [
        f"{found} are special tokens of the tokenizer, so rewards read a thought and its answer as "
        "one text. Set reward.keep_special_tokens=true to keep the tags."
    ]


def _decoded(tokenizer: Any, text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _gold_notes(config: Config, rows: Sequence[Any]) -> list[str]:
    """Golds are tried on a sample: parsing thousands of formulas would hold up every start."""
    from rlcli.rewards import reference_problems

    some = rows[:: max(1, len(rows) // TRIED_GOLDS)]
    problems = reference_problems(config.reward, some)
    if not problems:
        return []
    found = f"{len(problems)} of {len(some)} rows tried cannot be graded: {problems[0]}"
    judge = config.reward.judge
    if judge.enabled and judge.rule_first:
        return [f"{found} The judge scores their rollouts."]
    if len(problems) > MAX_BAD_GOLDS * len(some):
        raise DataError(
            f"{found}\nFix these rows, or set reward.fn to a function that can grade them; "
            "rlcli data check FILE lists all of them."
        )
    return [f"{found} Their rollouts stay unscored."]


def find_critic(resolved: Resolved, model_dir: Path, model_config: Any) -> Path:
    """The folder of the critic's model. Raises: ModelError if its token ids differ."""
    config = resolved.config
    if config.critic.path is None:
        return model_dir
    folder = find_model(config, config.critic.path)

    from rlcli.models.causal_lm import read_model_config

    trust = config.model.trust_remote_code
    critic_config = read_model_config(str(folder), trust_remote_code=trust)
    _check_build(
        folder,
        critic_config,
        "train",
        trust_remote_code=trust,
        where=resolved.where("critic.path"),
        needs_head=False,
    )
    critic, policy = critic_config.get_text_config(), model_config.get_text_config()
    if critic.vocab_size < policy.vocab_size:
        raise ModelError(
            f"{resolved.where('critic.path')} has a vocabulary of {critic.vocab_size} tokens, the "
            f"policy {policy.vocab_size}: they do not share a tokenizer.\n"
            "Choose a critic of the policy's family, or leave critic.path out."
        )
    return folder
