"""Console output: plain lines in a pipe, a live panel in a terminal or a notebook."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlcli.monitor.notebook import NotebookPanel, in_notebook
from rlcli.terminal.logs import QUIET, is_quiet

BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
HISTORY = 40
SHOWN = {
    "reward_mean": "reward",
    "kl_divergence": "KL",
    "entropy": "entropy",
    "clip_fraction": "clip",
    "response_length_mean": "length",
    "value_loss": "value loss",
}


def sparkline(values: list[float]) -> str:
    """Draw numbers as one line of bars."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[int((v - low) / span * (len(BARS) - 1))] for v in values)


def duration(seconds: float) -> str:
    """MM:SS, or H:MM:SS from an hour on."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute:02d}:{second:02d}"


def step_lines(
    step: int, epoch: int, record: Mapping[str, float], *, num_ranks: int = 1
) -> list[str]:
    """A step's metrics as lines, in the guides' format; metrics the run lacks are omitted.

    With several ranks, the micro-batches shown are those of rank 0.
    """
    lines = []
    if "batch/samples" in record:
        samples, tokens = int(record["batch/samples"]), int(record["batch/tokens"])
        where = " on rank 0" if num_ranks > 1 else ""
        lines.append(
            f"Epoch {epoch}, Step {step}: Dynamic Batch: {samples} samples ({tokens} tokens){where}"
        )
    terms = [
        ("Actor Loss", "policy_loss"),
        ("Critic Loss", "value_loss"),
        ("KL", "kl_divergence"),
        ("Reward", "reward_mean"),
    ]
    shown = [f"{label}: {record[key]:.3f}" for label, key in terms if key in record]
    return [*lines, ", ".join(shown)]


def epoch_line(epoch: int, epochs: int, done: int, total: int, seconds: float) -> str:
    """`Epoch 1/15: 100%|##########| 1024/1024 [05:23<00:00, 3.17it/s]`."""
    share = done / max(1, total)
    bar = ("\u2588" * round(10 * share)).ljust(10)
    rate = done / max(seconds, 1e-9)
    left = duration((total - done) / max(rate, 1e-9))
    return (
        f"Epoch {epoch}/{epochs}: {share:4.0%}|{bar}| {done}/{total} "
        f"[{duration(seconds)}<{left}, {rate:.2f}it/s]"
    )


class _LastingConsole(Console):
    """A console that stops printing when its pipe is closed, so that training goes on."""

    def on_broken_pipe(self) -> None:
        """Discard all further output."""
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self.file.fileno())
        os.close(devnull)


class RunConsole:
    """Prints a run to stdout and to console.log. `quiet` keeps stdout for machine output."""

    def __init__(
        self, log: Path, *, num_steps: int, num_ranks: int = 1, quiet: bool = False
    ) -> None:
        self.console = _LastingConsole(
            stderr=quiet,
            highlight=False,
            soft_wrap=True,
            force_jupyter=False,
            force_terminal=False if in_notebook() else None,
        )
        self.num_steps, self._num_ranks = num_steps, num_ranks
        self._log: IO[str] = log.open("a", encoding="utf-8")
        self._history: dict[str, deque[float]] = {k: deque(maxlen=HISTORY) for k in SHOWN}
        self._record: dict[str, float] = {}
        self._step, self._phase = 0, "starting"
        self._begun: tuple[float, int] | None = None
        self._live: Live | NotebookPanel | None = None
        self._stopping = ""

    def show_stopping(self, text: str) -> bool:
        """Show `text` at the bottom of the panel from now on; False if there is no panel.

        Safe in a signal handler: it takes no lock; the next refresh shows the text.
        """
        self._stopping = text
        return isinstance(self._live, Live)

    @property
    def is_live(self) -> bool:
        """Whether stdout is a terminal that can redraw."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def line(self, text: str, *, style: str | None = None, level: int = logging.INFO) -> None:
        """Print a line above the panel and write it to the log; --quiet prints warnings alone."""
        if not is_quiet() or level >= QUIET:
            # lines wrap on a terminal, but not in a pipe
            wraps = self.console.is_terminal
            self.console.print(Text(text, style=style or ""), soft_wrap=not wraps)
        self._log.write(text + "\n")
        self._log.flush()

    def start(self, step: int) -> None:
        """Start showing progress."""
        self._step, self._begun = step, (time.monotonic(), step)
        if in_notebook():  # ahead of is_live: a kernel's stdout may call itself a terminal
            self._live = NotebookPanel(self._panel)
        elif self.is_live and not is_quiet():
            self._live = Live(
                get_renderable=self._panel, console=self.console, refresh_per_second=4
            )
        if self._live is not None:
            self._live.start()

    def stop(self) -> None:
        """Stop the panel and leave its last state on the screen."""
        self._stopping = ""  # the phase then shows how the run ended
        if self._live is not None:
            self._live.stop()
            self._live = None

    def close(self) -> None:
        """Close the log file."""
        self.stop()
        self._log.close()

    def phase(self, name: str) -> None:
        """Show `name` as the current phase."""
        self._phase = name
        self._refresh()

    def step(self, step: int, epoch: int, record: Mapping[str, float]) -> None:
        """Show a finished step, counted from 1."""
        self._step, self._record = step, dict(record)
        for key, values in self._history.items():
            if key in record:
                values.append(record[key])
        lines = step_lines(step, epoch, record, num_ranks=self._num_ranks)
        if self._live is None:
            for text in lines:
                self.line(text)
        else:
            self._log.write("\n".join(lines) + "\n")
            self._log.flush()
            self._refresh()

    def _refresh(self) -> None:
        """Redraw a notebook's panel; a terminal's does it by itself."""
        if isinstance(self._live, NotebookPanel):
            self._live.refresh()

    def evaluation(self, step: int, record: Mapping[str, float]) -> None:
        """Show the held-out score of an evaluation."""
        if "eval/pass@1" in record:
            score = record["eval/pass@1"]
            self.line(f"Validation Accuracy: {score:.1%} (step {step})", style="bold")
        elif "eval/reward_mean" in record:
            reward = record["eval/reward_mean"]
            self.line(f"Held-out reward: {reward:.4g} (step {step})", style="bold")

    def _panel(self) -> RenderableType:
        begun, first = self._begun or (time.monotonic(), 0)
        seconds = time.monotonic() - begun
        done = self._step - first
        left = duration(seconds / done * (self.num_steps - self._step)) if done else "--:--"
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(
            f"step {self._step}/{self.num_steps}",
            ProgressBar(total=self.num_steps, completed=self._step),
            f"{duration(seconds)} < {left}",
        )
        rows = Table.grid(padding=(0, 2))
        for key, label in SHOWN.items():
            values = list(self._history[key])
            if values:
                rows.add_row(label, f"{values[-1]:.4g}", sparkline(values))
        rate = self._record.get("tokens_per_s")
        foot = Text(f"{self._phase}" + (f"   {rate:,.0f} tokens/s" if rate else ""), style="dim")
        stopping = [Text(self._stopping, style="bold yellow")] if self._stopping else []
        return Panel(Group(head, rows, foot, *stopping), title="rlcli", title_align="left")
