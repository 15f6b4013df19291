"""Waiting calls, sampled together and recorded in their episodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby

from rlcli.envs.chat import ApiError, Completion
from rlcli.envs.endpoint import WaitingCall
from rlcli.envs.recording import OpenCall, Recorder
from rlcli.rollout.base import SamplingParams
from rlcli.rollout.native import NativeSampler
from rlcli.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyCall:
    """A waiting call whose tokens are known."""

    waiting: WaitingCall
    recorder: Recorder
    call: OpenCall


def answer(
    calls: Iterable[tuple[WaitingCall, Recorder]],
    agent_s: Mapping[str, float],
    sampler: NativeSampler,
    params: SamplingParams,
    *,
    seed: int,
) -> None:
    """Sample all calls, one `generate` for each set of stop texts among them.

    calls: with the recorder of their episode. agent_s: by the key of the episode, seconds between
    its last reply and its first call. The order of the rows does not depend on the order in which
    the calls came. The draws depend on the seed, the episode's place and the tokens before the
    turn.
    """
    ready: list[ReadyCall] = []
    for waiting, recorder in calls:
        try:
            call = recorder.open(waiting.request, wait_s=agent_s.get(waiting.key, 0.0))
        except ApiError as error:
            _set(waiting, error)
            continue
        ready.append(ReadyCall(waiting=waiting, recorder=recorder, call=call))
    ready.sort(key=lambda each: (each.call.stop, each.call.index))
    for stop, group in groupby(ready, key=lambda each: each.call.stop):
        some = [*group]
        limits = [each.call.max_tokens for each in some]
        prompts = [
            Prompt(id=str(each.call.index), messages=(), token_ids=each.call.context)
            for each in some
        ]
        rollouts = sampler.generate(
            prompts,
            replace(params, n=1, max_tokens=max(limits), stop=(*params.stop, *stop)),
            seed=seed,
            prompt_indices=[each.call.index for each in some],
            limits=limits,
        )
        for each, one in zip(some, rollouts, strict=True):
            _set(each.waiting, each.recorder.finish(each.call, one))


def _set(waiting: WaitingCall, result: Completion | ApiError) -> None:
    with suppress(Exception):  # its episode may have ended meanwhile
        if isinstance(result, ApiError):
            waiting.reply.set_exception(result)
        else:
            waiting.reply.set_result(result)
