"""`rlcli env play`: episodes played by hand or by a model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcli.cli.progress import progress_bar
from rlcli.data.readers import Row
from rlcli.envs.calls import Calls, parse_pythonic, problem_of
from rlcli.envs.episode import EnvFacts, EnvReply, Episode, EpisodeFailedError
from rlcli.envs.process import EnvPool, EnvSpec
from rlcli.envs.tasks import SEED, TASK
from rlcli.errors import ConfigError

CALL = re.compile(r"\s*\w+\(.*\)\s*", re.DOTALL)


def play_model(model: str, settings: Mapping[str, Any], n: int) -> None:
    """Let a model play n episodes, and print them."""
    from rlcli.cli.rollouts import rollout_lines
    from rlcli.tools.evaluation.measuring import check_scored, run_evaluation, saved_rows
    from rlcli.tools.evaluation.planning import Request, plan_evaluation

    request = Request(target=model, temperature=1.0, limit=n, settings=settings)
    plan = plan_evaluation(request, Path.cwd(), os.environ)
    with progress_bar() as progress:
        sampled = run_evaluation(plan, env=os.environ, progress=progress)
    for number, row in enumerate(saved_rows(sampled)):
        print("\n".join([*([""] if number else []), *rollout_lines({"row": number, **row})]))
    check_scored(sampled)


def play_by_hand(
    spec: EnvSpec, facts: EnvFacts, rows: Sequence[Row], *, max_turns: int | None
) -> None:
    """Play episodes with the lines of standard input; its end ends the game."""
    if facts.schemas:
        names = [schema["function"]["name"] for schema in facts.schemas]
        print(f"tools: {', '.join(names)}. Call one as {names[0]}(argument=value).")
    pool = EnvPool(spec)
    try:
        for number, row in enumerate(rows):
            _Game(pool, facts, row, number).play(max_turns)
    except EpisodeFailedError as error:
        raise ConfigError(f"{spec.target}: {error}") from error
    except EOFError:
        print()
    finally:
        pool.close()


class _Game:
    """One episode played by a person."""

    def __init__(self, pool: EnvPool, facts: EnvFacts, row: Row, number: int) -> None:
        self._facts, self._row = facts, row
        extra = row.extra_info
        task, seed = extra.get(TASK, row.columns), extra.get(SEED, 0)
        self._episode = Episode(pool, number, task, seed=seed, form=facts.form)

    def play(self, max_turns: int | None) -> None:
        """Raises: EOFError when the input ends; EpisodeFailedError."""
        print(f"{self._row.id}")
        prompt = self._row.prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        _print(messages)
        rewards: list[float] = []
        turn, is_over = 0, False
        try:
            if self._facts.form != "functions":
                self._episode.begin()
            while not is_over and (max_turns is None or turn < max_turns):
                reply, is_over = self._answer(input("> "))
                turn += 1
                rewards += [] if reply.reward is None else [reply.reward]
                _print(reply.messages)
            print(f"reward: {self._reward(rewards)}")
        finally:
            self._episode.close()

    def _answer(self, text: str) -> tuple[EnvReply, bool]:
        """(the reply to a line, whether the episode is over)."""
        calls = parse_pythonic(f"[{text}]") if CALL.fullmatch(text) else Calls()
        found = [call for call in calls.calls if problem_of(call, self._facts.schemas) is None]
        if self._facts.form == "steps":
            reply = self._episode.step("" if found else text, found, is_truncated=False)
            return reply, reply.is_done
        return (self._episode.call(found), False) if found else (EnvReply(), True)

    def _reward(self, rewards: Sequence[float]) -> str:
        if not self._facts.scores:
            return "none (--reward gives it)"
        if self._facts.form == "methods":
            value = self._episode.reward()
        else:
            value = sum(rewards) if rewards else self._facts.floor
        return "none" if value is None else f"{value:g}"


def _print(messages: Sequence[Any]) -> None:
    for message in messages:
        print(f"{message['role']}: {message['content']}")
