"""The values that flow through a run: frozen, slotted, keyword-only.

Shape legend, used as a suffix on every tensor with dimensions:
P prompts of a step, G rollouts per prompt (a group), B = P * G rollouts, T response positions
(right-padded), N packed tokens, V vocabulary, D hidden size, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Message = Mapping[str, str]
RESPONSE_PREFIX = "response_prefix"
"""Key of extra_info: the `<think>` at the end of a prompt, which its response lacks."""
StepRecord = dict[str, float]
"""One step's metrics: flat `group/name` to number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question, ready to sample from. `id` is unique within its file: `file.jsonl:17`.

    columns: all of its row, for reward functions; `prompt` as in the row, text or messages.
    """

    id: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    ground_truth: Any = None
    data_source: str = ""
    extra_info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of an episode, for logs, metrics and views.

    text: what the policy wrote, without its end token. num_tokens: of it, end token included.
    replies: the environment's messages that followed. num_reply_tokens: tokens that the policy did
    not write, up to its next turn. tool_calls: names of the tools that ran. tool_errors: calls that
    failed: unknown tool, bad arguments, an exception. parse_failures: calls that could not be read.
    reward: the environment's for this turn. wait_s: seconds until the environment had replied.
    """

    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    replies: tuple[Message, ...] = ()
    num_reply_tokens: int = 0
    tool_calls: tuple[str, ...] = ()
    tool_errors: int = 0
    parse_failures: int = 0
    reward: float | None = None
    wait_s: float = 0.0


FinishReason = Literal["stop", "length", "turns", "env"]
"""stop: the policy ended its last turn. length: a token limit cut it. turns: env.max_turns was
reached. env: the environment ended the episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled response; `token_ids` ends with its EOS when `finish_reason` is "stop".

    `logprobs` are the sampler's, of logits / temperature before any top-p or top-k cut.
    An episode of several turns is one rollout, `model tokens | environment tokens | model ...`:
    mask is 1 on the tokens that the policy wrote; None: it wrote all. Log-probs of the others
    are 0. text: of the last turn. turns: empty for a single turn without an environment.
    reward: the environment's; None: the scorer gives it. more: other conversations of the same
    episode, whose prompts begin with the same token_ids: rows of their own with its reward.
    """

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int
    greedy: bool = False
    mask: tuple[int, ...] | None = None
    turns: tuple[Turn, ...] = ()
    reward: Reward | None = None
    more: tuple[Rollout, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that the policy wrote in the episode, end tokens included."""
        own = len(self.token_ids) if self.mask is None else sum(self.mask)
        return own + sum(each.num_tokens for each in self.more)

    @property
    def env_failed(self) -> bool:
        """Whether the environment failed, so that nothing can score the episode."""
        return self.reward is not None and self.reward.value is None


class Response(Protocol):
    """A rollout without its tokens, for logs, metrics and judges."""

    @property
    def prompt(self) -> Prompt: ...
    @property
    def text(self) -> str: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def policy_version(self) -> int: ...
    @property
    def turns(self) -> tuple[Turn, ...]: ...
    @property
    def env_failed(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A rollout's score. `value` None means unscored: masked out and counted, never 0.

    reason: what a judge wrote, or why a rule gave its score. is_undecided: a rule found no answer
    to compare, so that its score, if any, is not the last word where a judge can be asked.
    is_outage: the scoring service gave no answer within its time limit.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    error: str | None = None
    usage: Mapping[str, float] = field(default_factory=dict[str, float])
    reason: str | None = None
    is_undecided: bool = False
    is_outage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """This rank's prompts among the `total` prompts of a step, by their numbers, ascending."""

    numbers: tuple[int, ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """This rank's rollouts of one step as tensors; rows of one group are adjacent.

    prompt_ids: P tuples of prompt token ids. group_B: row -> index into prompt_ids.
    token_ids_BT: response tokens, 0 past lengths_B; those of an environment are among them.
    response_mask_BT: 1.0 on tokens the policy wrote. rollout_logprobs_BT: the sampler's. rewards_B:
    0.0 where valid_B is 0. valid_B: 1.0 for a row that takes part in means and loss. truncated_B:
    True where a limit on tokens or turns cut the response. turn_rewards_BT: each turn's part of
    the reward, on the turn's last token; None: the last token has all of it. baseline_B: reward
    of the greedy rollout of the row's prompt (ReMax). parts: reward components, each [B]. share:
    its prompts among those of the step; None: it has all of them.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    group_B: Tensor
    token_ids_BT: Tensor
    lengths_B: Tensor
    response_mask_BT: Tensor
    rollout_logprobs_BT: Tensor
    rewards_B: Tensor
    valid_B: Tensor
    truncated_B: Tensor
    turn_rewards_BT: Tensor | None = None
    baseline_B: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    share: Share | None = None

    @property
    def prompt_numbers(self) -> tuple[int, ...]:
        """The number of each prompt in the step."""
        return tuple(range(len(self.prompt_ids))) if self.share is None else self.share.numbers

    @property
    def num_step_prompts(self) -> int:
        """Prompts of the step, on all ranks."""
        return len(self.prompt_ids) if self.share is None else self.share.total


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedBatch(Batch):
    """A Batch plus what the models say of it before the update.

    old_logprobs_BT: the trainer's (or the sampler's where they are the same). ref_logprobs_BT:
    the reference model's, when a KL term is on. values_BT: the critic's, per response token.
    sum_pi_squared_BT: sum over the vocabulary of pi^2 (optimal token baseline).
    """

    old_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor | None = None
    values_BT: Tensor | None = None
    sum_pi_squared_BT: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """advantages_BT and, where a critic learns from them, returns_BT. 0 where the mask is 0.

    loss_mask_BT: tokens that take part in the update (unscored, rejected and filtered rollouts
    are out). correction_BT: trainer/sampler importance weights. None: the response mask, 1.
    """

    advantages_BT: Tensor
    returns_BT: Tensor | None = None
    loss_mask_BT: Tensor | None = None
    correction_BT: Tensor | None = None
    stats: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """A per-token loss and per-token statistics, never reduced: the engine alone divides."""

    loss_BT: Tensor
    stats_BT: Mapping[str, Tensor]


class AllReduce(Protocol):
    """The sum (or the maximum) of a tensor over all ranks; the identity in a single process."""

    def __call__(self, values: Tensor, /) -> Tensor: ...


class Gather(Protocol):
    """(the tensors of all ranks, whose lengths may differ; this rank)."""

    def __call__(self, values: Tensor, /) -> tuple[list[Tensor], int]: ...
