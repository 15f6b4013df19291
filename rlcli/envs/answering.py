"""Waiting calls, sampled together and recorded in their episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby

from rlcli.envs.chat import ApiError, Completion
from rlcli.envs.endpoint import WaitingCall
from rlcli.envs.recording import OpenCall, Recorder
from rlcli.rollout.base import Sampler, SamplingParams
from rlcli.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyCall:
    """A waiting call whose tokens are known."""

    waiting: WaitingCall
    recorder: Recorder
    call: OpenCall


def answer(
    calls: Sequence[WaitingCall],
    recorders: Mapping[str, Recorder],
    waited_s: Mapping[str, float],
    sampler: Sampler,
    params: SamplingParams,
    *,
    seed: int,
) -> None:
    """Sample all calls, one `generate` for each width and set of stop texts among them.

    recorders, waited_s: by the token of the episode; a call of another token is refused. The order
    of the rows does not depend on the order in which the calls came, and what is drawn depends on
    the seed, the episode's place and the tokens before the turn.
    """
    ready: list[ReadyCall] = []
    for waiting in calls:
        recorder = recorders.get(waiting.key)
        if recorder is None:
            continue
        try:
            call = recorder.open(waiting.request, wait_s=waited_s.get(waiting.key, 0.0))
        except ApiError as error:
            _set(waiting, error)
            continue
        ready.append(ReadyCall(waiting=waiting, recorder=recorder, call=call))
    ready.sort(key=_group)
    for (width, stop), group in groupby(ready, key=lambda each: _group(each)[:2]):
        some = [*group]
        prompts = [
            Prompt(id=str(each.call.index), messages=(), token_ids=each.call.context)
            for each in some
        ]
        rollouts = sampler.generate(
            prompts,
            replace(params, n=1, max_tokens=width, stop=(*params.stop, *stop)),
            seed=seed,
            prompt_indices=[each.call.index for each in some],
        )
        for each, one in zip(some, rollouts, strict=True):
            _set(each.waiting, each.recorder.finish(each.call, one))


def _group(ready: ReadyCall) -> tuple[int, tuple[str, ...], int]:
    return ready.call.width, ready.call.stop, ready.call.index


def _set(waiting: WaitingCall, result: Completion | ApiError) -> None:
    with suppress(Exception):  # its episode may have ended meanwhile
        if isinstance(result, ApiError):
            waiting.reply.set_exception(result)
        else:
            waiting.reply.set_result(result)
