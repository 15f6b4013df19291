"""`rlcli`: the command groups, and what an error looks like."""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import typer

from rlcli.cli.algo import algo_app
from rlcli.cli.ckpt import ckpt_app
from rlcli.cli.config import config_app
from rlcli.cli.data import data_app
from rlcli.cli.doctor import doctor
from rlcli.cli.env import env_app
from rlcli.cli.eval import eval_
from rlcli.cli.plan import plan
from rlcli.cli.presets import presets_app
from rlcli.cli.report import report
from rlcli.cli.reward import reward_app
from rlcli.cli.rollouts import rollouts_app
from rlcli.cli.runs import runs_app
from rlcli.cli.train import train
from rlcli.cli.usage import UsageProblem, translated, usage_message, without_language
from rlcli.compat.verl.script import with_script
from rlcli.distributed.process_count import end_with_launcher
from rlcli.distributed.rank_env import without_local_rank
from rlcli.errors import RlcliError
from rlcli.system.signals import INTERRUPTED
from rlcli.terminal.i18n import language, translator
from rlcli.terminal.logs import Shown, set_level, show_with, take_level, to_stderr

app = typer.Typer(
    name="rlcli",
    help="Post-train a language model with reinforcement learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)
app.command()(train)
app.command()(plan)
app.add_typer(config_app, name="config")
app.add_typer(algo_app, name="algo")
app.add_typer(presets_app, name="presets")
app.add_typer(data_app, name="data")
app.add_typer(reward_app, name="reward")
app.add_typer(env_app, name="env")
app.add_typer(rollouts_app, name="rollouts")
app.add_typer(runs_app, name="runs")
app.add_typer(ckpt_app, name="ckpt")
app.command("eval")(eval_)
app.command()(doctor)
app.command()(report)


@app.callback(invoke_without_command=True)
def root(
    version: bool = typer.Option(False, "--version", help="Print the version."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Print debug messages too."),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="Print only warnings and results."),
) -> None:
    """Post-train a language model with reinforcement learning."""
    if version:
        from rlcli import __version__

        print(__version__)
        raise typer.Exit


class ProcessEnd:
    """Ends the process of a rank without the interpreter's shutdown.

    Packages keep process groups in default arguments, so gloo's threads outlive them; a thread that
    frees a tensor during the shutdown aborts the process (exit code -6). Register this as the first
    atexit handler, so that it runs last.
    """

    exit_code = 1

    def __call__(self) -> None:
        """Exit with `exit_code` if torch.distributed was used and vLLM was not.

        vLLM removes its shared memory in the shutdown; the next run could not create it otherwise.
        """
        if "rlcli.distributed.process_group" in sys.modules and "vllm" not in sys.modules:
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(self.exit_code)


def run_process() -> None:
    """The entry point of a process: `main`, with its exit code kept for ProcessEnd."""
    end = ProcessEnd()
    atexit.register(end)
    try:
        main()
    except SystemExit as left:
        end.exit_code = left.code if isinstance(left.code, int) else int(left.code is not None)
        raise
    except KeyboardInterrupt:
        end.exit_code = INTERRUPTED
        raise
    else:
        end.exit_code = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's error is printed without a traceback."""
    # OpenMP threads that spin while they wait take the cores from everything else: measured 10x
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    end_with_launcher(os.environ)
    _make_streams_safe()
    words, level = take_level(sys.argv[1:] if arguments is None else arguments)
    lang = language(words, os.environ)
    set_level(level)
    show_with(Shown(to_stderr, lang=lang))
    say = translator(lang)
    try:
        words = without_local_rank(words)
        words = with_script(words, os.environ)
        command = typer.main.get_command(app)
        if say is not str:
            command = translated(command, say)
        returned = command(
            without_language(words, command), prog_name="rlcli", standalone_mode=False
        )
        sys.stdout.flush()
        sys.exit(returned if isinstance(returned, int) else 0)
    except UsageProblem as problem:
        print(say(usage_message(problem, words)), file=sys.stderr)
        sys.exit(problem.exit_code)
    except RlcliError as error:
        print(say(f"error: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE) or error.filename is not None:
            raise
        # what is left in the buffer would fail once more at the interpreter's end
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        print(say(f"error: cannot write the output: {error.strerror}."), file=sys.stderr)
        sys.exit(1)


def _make_streams_safe() -> None:
    """A closed output swallows; a terminal that cannot show a character shows its number."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    run_process()
