"""Games of textarena. The policy is player 0; a function of yours plays for the others."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlcli.envs.sources import EnvLoadError, nearest
from rlcli.rewards.user_file import UserFileError, load_file

_textarena: Any = importlib.import_module("textarena")
_registry: Any = importlib.import_module("textarena.envs.registration")
MAX_PLAYERS = 15


def names() -> list[str]:
    """Names of all games, without their variants of other prompts."""
    return sorted(name for name in _registry.ENV_REGISTRY if not name.endswith(("-raw", "-train")))


def load(name: str, args: Mapping[str, Any]) -> type[TextArena]:
    """The environment of one game. Raises: EnvLoadError."""
    if name not in _registry.ENV_REGISTRY:
        raise EnvLoadError(
            f"textarena has no game {name!r}. {nearest(name, names())}"
            "rlcli env list textarena shows all."
        )
    given = dict(args)
    opponent = given.pop("opponent", None)
    players = given.pop("players", None)
    wanted = [int(players)] if players is not None else range(1, MAX_PLAYERS + 1)
    num_players, problem = _try(name, given, wanted)
    if num_players is None:
        raise EnvLoadError(f"textarena:{name} does not start here: {problem}.")
    if num_players > 1 and opponent is None:
        raise EnvLoadError(
            f"textarena:{name} needs {num_players} players. Name a function that gets what another "
            "player sees and returns its move: env.args.opponent=FILE.py:FUNCTION."
        )
    made = {
        "name": name,
        "given": given,
        "num_players": num_players,
        "opponent": staticmethod(_load_opponent(str(opponent))) if opponent else None,
        "floor": -1.0 if num_players > 1 else 0.0,
    }
    return type("TextArena", (TextArena,), made)


class TextArena:
    """A game of textarena. Its reward is that of player 0 at the end; a stopped game is a loss."""

    name: str
    given: Mapping[str, Any]
    num_players: int
    opponent: Callable[[str], str] | None
    floor: float

    def reset(self, seed: int) -> str:
        """Begin a game; returns what the policy sees."""
        self._game = _textarena.make(env_id=self.name, **self.given)
        self._game.reset(num_players=self.num_players, seed=seed)
        _, text = self._game.get_observation()
        return _text(text)

    def step(self, reply: Any) -> dict[str, Any]:
        """Make the policy's move, then those of the others."""
        is_done, _ = self._game.step(action=reply.text)
        while not is_done:
            player, text = self._game.get_observation()
            if player == 0:
                return {"messages": _text(text)}
            move = self.opponent(_text(text)) if self.opponent else ""
            is_done, _ = self._game.step(action=str(move))
        rewards, _ = self._game.close()
        return {"reward": float((rewards or {}).get(0, self.floor)), "done": True}


def _try(name: str, given: Mapping[str, Any], wanted: Any) -> tuple[int | None, str]:
    """(the smallest number of players that a game starts with, or None; the last problem)."""
    problem = "no number of players works"
    for players in wanted:
        try:
            game = _textarena.make(env_id=name, **given)
            game.reset(num_players=players, seed=0)
            player, _ = game.get_observation()
            if player == 0:
                return players, ""
            problem = f"player {player} begins, and the policy is player 0"
        except Exception as error:  # games check their players with asserts, and miss files or keys
            problem = _reason(error)
            if not isinstance(error, AssertionError | ValueError | KeyError | IndexError):
                break
    return None, problem


def _reason(error: Exception) -> str:
    lines = [line.strip(" *") for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


def _text(observation: Any) -> str:
    """An observation as text: games give text, or (player, text) pairs."""
    if isinstance(observation, str):
        return observation
    return "\n".join(str(part[1]) if isinstance(part, tuple) else str(part) for part in observation)


def _load_opponent(target: str) -> Callable[[str], str]:
    place, _, name = target.rpartition(":")
    path = Path(place).expanduser().absolute()
    if not place.endswith(".py") or not path.is_file():
        raise EnvLoadError(f"env.args.opponent={target}: expected FILE.py:FUNCTION of a file.")
    try:
        found = getattr(load_file(path, kind="opponent"), name, None)
    except UserFileError as error:
        raise EnvLoadError(str(error)) from error
    if not inspect.isfunction(found):
        raise EnvLoadError(f"env.args.opponent={target}: there is no function {name}.")
    return found
