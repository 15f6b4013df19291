"""The options that say what a run is: one table, shared by train, plan, config show and compare."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from rlcli.config.request import RunRequest

START, WHAT, HOW, SCORE, RUN = "Start", "What to train", "How", "The reward", "The run"
Text, Whole, Real, Switch = str | None, int | None, float | None, bool | None
Several = list[str] | None


def _algorithms(incomplete: str) -> list[str]:
    return _preset_names(incomplete, ("algorithm",))


def _presets(incomplete: str) -> list[str]:
    return _preset_names(incomplete, ("algorithm", "recipe"))


def _preset_names(incomplete: str, kinds: Sequence[str]) -> list[str]:
    from rlcli.config.presets import list_presets

    names = [preset.name for preset in list_presets() if preset.kind in kinds]
    return [name for name in names if name.startswith(incomplete)]


def _keys(incomplete: str) -> list[str]:
    from rlcli.config.schema import defaults

    return [f"{key}=" for key in defaults() if key.startswith(incomplete)]


COMPLETIONS: Final = {"algo": _algorithms, "preset": _presets}
"""What the shell offers after an option."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option. Its name is that of FLAG_KEYS, or of `RunRequest`'s own fields."""

    name: str
    kind: Any
    panel: str
    help: str
    names: tuple[str, ...] = ()

    def parameter(self) -> inspect.Parameter:
        """What typer reads."""
        option = typer.Option(
            *self.names,
            help=self.help,
            rich_help_panel=self.panel,
            autocompletion=COMPLETIONS.get(self.name),
        )
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if self.kind is bool else None,
            annotation=Annotated[self.kind, option],
        )


OPTIONS: Final = (
    Option("algo", Text, START, "Algorithm preset."),
    Option("preset", Text, START, "Recipe or algorithm preset."),
    Option("config", list[Path] | None, START, "YAML file.", ("--config", "--config-name")),
    Option("from_script", Path | None, START, "Take over a script's command."),
    Option("ignore_unsupported", bool, START, "Warn of unknown keys.", ("--ignore-unsupported",)),
    Option("model", Text, WHAT, "Directory or hub name."),
    Option("hub", Text, WHAT, "hf or modelscope."),
    Option("trust_remote_code", Switch, WHAT, "Run the model's code.", ("--trust-remote-code",)),
    Option("data", Several, WHAT, "Training file."),
    Option("val_data", Several, WHAT, "Evaluation file."),
    Option("env", Text, WHAT, "FILE.py:CLASS or agent:COMMAND."),
    Option("tools", Text, WHAT, "File of functions to call."),
    Option("env_python", Text, WHAT, "Python of the environment."),
    Option("epochs", Whole, HOW, "Passes over the data."),
    Option("max_steps", Whole, HOW, "Stop after so many steps."),
    Option("lr", Real, HOW, "Learning rate."),
    Option("batch_size", Whole, HOW, "Prompts per step."),
    Option("kl_coef", Real, HOW, "KL coefficient."),
    Option("engine", Text, HOW, "auto, torch, fsdp or deepspeed."),
    Option("n_gpus", Whole, HOW, "GPUs of each node."),
    Option("seed", Whole, HOW, "Fixes everything."),
    Option("reward", Text, SCORE, "rules, one rule's name, or FILE:FN."),
    Option("reward_model", Text, SCORE, "Directory, hub name or URL."),
    Option("use_api_reward", Switch, SCORE, "Score with an LLM judge."),
    Option("rm_api_type", Text, SCORE, "dashscope, openai, gemini, claude."),
    Option("rm_model", Text, SCORE, "The judge, e.g. qwen-plus."),
    Option("rm_prompt_preset", Text, SCORE, "math, code, dialogue, safety, FILE."),
    Option("rm_system_prompt", Text, SCORE, "In place of the template's."),
    Option("rm_scoring_prompt", Text, SCORE, "{prompt} {response} {ground_truth}"),
    Option("rm_base_url", Text, SCORE, "A compatible server."),
    Option("rm_concurrency", Whole, SCORE, "Calls in flight at most."),
    Option("rm_rpm", Whole, SCORE, "Calls per minute at most."),
    Option("rm_tpm", Whole, SCORE, "Tokens per minute at most."),
    Option("max_judge_cost", Real, SCORE, "US dollars at most."),
    Option(
        "unsafe_code_execution", Switch, SCORE, "Run code unboxed.", ("--unsafe-code-execution",)
    ),
    Option("output_dir", Text, RUN, "Run directory, exactly as given."),
    Option("run_name", Text, RUN, "Name in outputs/."),
    Option("resume", Text, RUN, "auto, never, STEP or PATH."),
    Option("save_every", Whole, RUN, "Steps between checkpoints."),
    Option("keep", Whole, RUN, "Checkpoints kept."),
    Option("merge_lora", Switch, RUN, "Save a merged model too.", ("--merge-lora",)),
    Option("logger", Several, RUN, "console, wandb or tensorboard."),
    Option("disk_budget", Real, RUN, "GiB the run may take."),
    Option("preempt_exit_code", Whole, RUN, "Exit code after SIGTERM."),
    Option("lang", Text, RUN, "en or zh."),
)
OVERRIDES = inspect.Parameter(
    "overrides",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Several,
        typer.Argument(metavar="[key=value]...", help="Any setting by name.", autocompletion=_keys),
    ],
)
OWN = frozenset({"overrides", "algo", "preset", "config", "from_script", "ignore_unsupported"})
"""Not settings. `--from_script` is gone by now: main puts the script's words in its place."""


def takes_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command(request, ...)` with every run option in front of its own."""
    own = [*inspect.signature(command, eval_str=True).parameters.values()][1:]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

    def run(**given: Any) -> None:
        mine = {parameter.name: given.pop(parameter.name) for parameter in own}
        flags = {name: value for name, value in given.items() if name not in OWN}
        request = RunRequest(
            flags={name: value for name, value in flags.items() if value not in (None, [], ())},
            overrides=given["overrides"] or [],
            files=given["config"] or [],
            algo=given["algo"],
            preset=given["preset"],
            ignore_unsupported=given["ignore_unsupported"],
        )
        command(request, **mine)

    parameters = [OVERRIDES, *(option.parameter() for option in OPTIONS), *own]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
