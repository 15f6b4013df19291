"""Peak memory of every phase of a step: the sum of everything in memory at its worst moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rlcli.config.schema import Config, RolloutConfig
from rlcli.plan import passes
from rlcli.plan.learning import Moment, Update, left_in_heap
from rlcli.plan.loading import Loading, plan_loading
from rlcli.plan.machine import Machine
from rlcli.plan.needs import needs_of
from rlcli.plan.shapes import ModelShape
from rlcli.plan.states import (
    FLOAT,
    HALF,
    Numerics,
    critic_parameters,
    gathered_bytes,
    num_processes,
    numerics_of,
    policy_states,
    trained_states,
)
from rlcli.plan.workload import Rows, Workload, workload_of
from rlcli.setup.checks.sampler import SERVER_MEMORY_FRACTION
from rlcli.system.hardware import GIB

RUNTIME = {"cpu": 0.04 * GIB, "cuda": 0.6 * GIB, "mps": 0.3 * GIB}
"""Bytes that libraries take once they compute: loaded code, contexts, workspaces."""
TOKEN_BYTES = 130
"""Bytes of one sampled token on the host: id and log-prob as Python numbers and in tensors."""
REWARD_ROWS = 8
"""Rollouts that a reward model scores at once."""
SAMPLER_COPIES = 5
"""Copies of [rows, vocabulary] in float32: logits twice, log-probs, weights, their sums."""
TOP_P_COPIES = 6
"""More copies under top_p: sorted logits, their index (8 bytes), probabilities and sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """GiB on one device at the worst moment of a phase. overhead: libraries, rollouts, the heap."""

    name: str
    states_gib: float
    activations_gib: float
    logits_gib: float
    rollout_gib: float
    overhead_gib: float
    peak_gib: float
    fits: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models in memory. reward: a reward model loaded here, not one behind a URL."""

    policy: ModelShape
    critic: ModelShape | None = None
    reward: ModelShape | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmShare:
    """GiB of each GPU that vLLM may use, and GiB it needs for weights and one rollout's cache.

    widths: values of rollout.tensor_parallel that this model and machine allow.
    """

    share_gib: float
    needs_gib: float
    widths: list[int]

    @property
    def fits(self) -> bool:
        """Whether vLLM can start."""
        return self.needs_gib <= self.share_gib


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Memory of loading and of the phases of a step. host_gib: offloaded to the host.

    loading_host_gib: host memory in use while this machine's processes load models for GPUs.
    vllm: None without vLLM, or if the memory of its GPUs is unknown.
    """

    phases: list[Phase]
    host_gib: float
    loading_host_gib: float
    vllm: VllmShare | None
    workload: Workload
    numerics: Numerics
    processes: int
    """Processes of the run; `numerics.ranks` of them share states."""

    @property
    def largest(self) -> Phase:
        """The phase with the highest peak among those that do not fit, if any; else among all."""
        return max(self.phases, key=lambda phase: (phase.fits is False, phase.peak_gib))

    @property
    def lacks_vllm_share(self) -> bool:
        """Whether vLLM's share of a GPU is too small for its weights."""
        return self.vllm is not None and not self.vllm.fits


def plan_memory(
    config: Config, models: Models, *, machine: Machine, num_val: int | None
) -> MemoryPlan:
    """Memory of loading and of each phase of a step, from step 2 on, when all states exist."""
    numerics = numerics_of(config, device=machine.kind, devices=machine.devices)
    workload = workload_of(config, num_val=num_val, ranks=numerics.ranks)
    step = _Step(config, models, numerics, workload, machine)
    local = config.train.n_gpus or machine.devices
    return MemoryPlan(
        phases=step.phases(),
        host_gib=step.host / GIB,
        loading_host_gib=local * step.loading.host / GIB,
        vllm=step.vllm,
        workload=workload,
        numerics=numerics,
        processes=num_processes(config, machine.devices),
    )


@dataclass(slots=True)
class _Step:
    config: Config
    models: Models
    numerics: Numerics
    work: Workload
    machine: Machine
    states: float = field(init=False)
    host: float = field(init=False)
    gradients: float = field(init=False)
    loading: Loading = field(init=False)
    vllm: VllmShare | None = field(init=False)
    critic_gradients: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        policy = policy_states(self.models.policy, self.config, self.numerics)
        self.states, self.host, self.gradients = policy.device, policy.host, policy.gradients
        self.states += self._copies()
        if self.models.critic is not None:
            count = critic_parameters(self.models.critic)
            critic = trained_states(count, self.config, self.numerics)
            self.states += critic.device
            self.host += critic.host
            self.critic_gradients = critic.gradients
        if self.models.reward is not None:
            self.states += self.models.reward.parameters * self.numerics.width
        if self.machine.is_cpu:
            self.states, self.host = self.states + self.host, 0.0
        self.loading = plan_loading(
            self.config,
            self.numerics,
            policy=self.models.policy,
            critic=self.models.critic,
            reward=self.models.reward,
        )
        self.vllm = self._vllm_share()

    def _copies(self) -> float:
        """Bytes of the reference and the sampler's own copy, if the run has them."""
        shape, numerics, config = self.models.policy, self.numerics, self.config
        copies = 0.0
        if numerics.fsdp and config.rollout.is_native:
            copies += numerics.width * shape.parameters
        if numerics.is_lora:
            return copies
        if config.algorithm.needs_reference and not self._moves_reference:
            copies += self._reference()
        if numerics.half and config.rollout.is_native and not numerics.fsdp:
            copies += HALF * shape.parameters
        return copies

    @property
    def _moves_reference(self) -> bool:
        """Whether the reference is on the host between uses."""
        moves = self.config.ref.offload_params or (
            self.numerics.fsdp and self.config.train.offloads
        )
        return moves and not self.machine.is_cpu

    def _reference(self) -> float:
        """Bytes of the reference: at the policy's precision, whole on every rank under torch."""
        numerics = self.numerics
        if numerics.is_sharded:
            return numerics.width * self.models.policy.parameters / numerics.ranks
        return FLOAT * self.models.policy.parameters

    def phases(self) -> list[Phase]:
        """Loading, then the phases in the order of a step."""
        policy, critic = self._policy_update(), self.models.critic
        updates = {"update": policy}
        if critic is not None:
            updates = {"critic": self._critic_update(critic), **updates}
        is_cpu = self.machine.is_cpu
        in_heap = left_in_heap([*updates.values()]) if is_cpu else 0.0
        phases = [
            self._loading(),
            self._phase("rollout", [replace(self._sampling(), unused=in_heap)]),
            self._phase("logprobs", [replace(self._sweep(), unused=in_heap)]),
        ]
        for name, update in updates.items():
            gathered = gathered_bytes(update.shape, self.numerics)
            moments = update.moments(is_cpu=is_cpu)
            phases.append(self._phase(name, [_plus(m, gathered) for m in moments]))
        if self.models.reward is not None:
            scoring = replace(self._scoring(self.models.reward), unused=in_heap)
            phases.append(self._phase("reward_model", [scoring]))
        return phases

    def _phase(self, name: str, moments: Sequence[Moment]) -> Phase:
        worst = max(moments, key=lambda moment: moment.total)
        overhead = RUNTIME[self.machine.kind] + worst.unused
        states = self.states - worst.missing
        activations = worst.activations
        if self.machine.is_cpu:
            overhead += self.work.rollouts * self.work.update.response_length * TOKEN_BYTES
        peak = states + activations + worst.logits + worst.rollout + overhead
        limit = self.machine.memory_gib
        lacks_share = name == "rollout" and self.vllm is not None and not self.vllm.fits
        return Phase(
            name=name,
            states_gib=states / GIB,
            activations_gib=activations / GIB,
            logits_gib=worst.logits / GIB,
            rollout_gib=worst.rollout / GIB,
            overhead_gib=overhead / GIB,
            peak_gib=peak / GIB,
            fits=None if limit is None else peak <= limit * GIB and not lacks_share,
        )

    def _loading(self) -> Phase:
        states, overhead = self.loading.device / GIB, RUNTIME[self.machine.kind] / GIB
        limit = self.machine.memory_gib
        return Phase(
            name="loading",
            states_gib=states,
            activations_gib=0.0,
            logits_gib=0.0,
            rollout_gib=0.0,
            overhead_gib=overhead,
            peak_gib=states + overhead,
            fits=None if limit is None else states + overhead <= limit,
        )

    def _sampling(self) -> Moment:
        """Sampling: the KV cache, and choosing the next tokens."""
        config, shape, rows = self.config, self.models.policy, self.work.rollout
        if not config.rollout.is_native:
            return Moment(rollout=self._vllm())
        kv = passes.native_kv_bytes(shape, rows, width=self.numerics.width)
        one = FLOAT * rows.rows * shape.vocabulary
        copies = SAMPLER_COPIES + (TOP_P_COPIES if config.rollout.top_p < 1.0 else 0)
        ids = rows.response_tokens * (8 + FLOAT + FLOAT)
        prompts = Rows(
            rows=0,
            prompts=rows.prompts,
            prompt_length=rows.prompt_length,
            response_length=rows.response_length,
        )
        prefill = passes.passing_bytes(shape, prompts, self.numerics)
        later = max(prefill - copies * one, 0.0)
        return Moment(logits=copies * one, rollout=kv + ids, activations=later)

    def _vllm(self) -> float:
        """Bytes that vLLM takes of each GPU: its memory share, or the weights if unknown."""
        if self.config.rollout.engine == "vllm_server":
            return 0.0
        if self.machine.memory_gib is not None:
            return self.config.rollout.memory_fraction * self.machine.memory_gib * GIB
        tensor_parallel = self.config.rollout.tensor_parallel
        return self.models.policy.parameters * self.numerics.width / tensor_parallel

    def _vllm_share(self) -> VllmShare | None:
        """vLLM's share of a GPU; None on the CPU and for a server that already runs elsewhere."""
        rollout, shape, memory = self.config.rollout, self.models.policy, self.machine.memory_gib
        if rollout.is_native or self.machine.is_cpu or memory is None or rollout.url is not None:
            return None
        fraction = rollout.memory_fraction
        if rollout.engine == "vllm_server" and fraction == RolloutConfig().memory_fraction:
            fraction = SERVER_MEMORY_FRACTION
        width, tensor_parallel = self.numerics.width, rollout.tensor_parallel
        data = self.config.data
        cache = passes.kv_bytes_per_token(shape, width=width) * (
            data.max_prompt_tokens + data.max_response_tokens
        )
        shared = min(tensor_parallel, shape.kv_heads)
        needs = shape.parameters * width / tensor_parallel + cache / shared
        local = self.config.train.n_gpus or self.machine.devices
        widths = [n for n in (1, 2, 4, 8, 16) if n <= local and shape.heads % n == 0]
        return VllmShare(share_gib=fraction * memory, needs_gib=needs / GIB, widths=widths)

    def _sweep(self) -> Moment:
        """Computing the old and reference log-probs that the run needs."""
        algorithm, rollout = self.config.algorithm, self.config.rollout
        squares = "sum_pi_squared" in needs_of(self.config)
        is_same = rollout.is_native and not self.numerics.half and not rollout.async_steps
        is_exact = is_same and not algorithm.compares_sampler
        reads_policy = squares or not (is_exact or algorithm.use_rollout_logprobs)
        if not reads_policy and not algorithm.needs_reference:
            return Moment()
        shape, rows = self.models.policy, self.work.sweep
        passing = passes.passing_bytes(shape, rows, self.numerics)
        casts = passes.cast_bytes(shape, self.numerics) if reads_policy else 0.0
        copies = passes.SQUARES_COPIES if squares else passes.NO_GRAD_COPIES
        logits = copies * passes.chunk_bytes(shape, rows)
        hidden = 2 * FLOAT * shape.hidden * rows.tokens
        moves = self._moves_reference and algorithm.needs_reference
        fetched = self._reference() if moves and not self.numerics.is_sharded else 0.0
        fetched += gathered_bytes(shape, self.numerics, trains=False)
        if logits + hidden > passing:
            return Moment(activations=casts + hidden + fetched, logits=logits)
        return Moment(activations=casts + passing + fetched)

    def _policy_update(self) -> Update:
        has_bonus = self.config.algorithm.entropy_coef > 0
        return Update(
            shape=self.models.policy,
            rows=self.work.update,
            numerics=self.numerics,
            gradients=self.gradients,
            several=self.work.num_update > 1,
            checkpointed=self.config.model.gradient_checkpointing,
            head_copies=passes.ENTROPY_GRAD_COPIES if has_bonus else passes.ENTROPY_COPIES,
        )

    def _critic_update(self, shape: ModelShape) -> Update:
        return Update(
            shape=shape,
            rows=self.work.critic,
            numerics=replace(self.numerics, lora_rank=0),
            gradients=self.critic_gradients,
            several=self.work.num_critic > 1,
            checkpointed=self.config.model.gradient_checkpointing,
            head_copies=0,
        )

    def _scoring(self, shape: ModelShape) -> Moment:
        """Forward pass of a reward model over a few rollouts."""
        length = self.work.update.prompt_length + self.work.update.response_length
        rows = Rows(rows=0, prompts=REWARD_ROWS, prompt_length=length, response_length=0)
        return Moment(activations=passes.passing_bytes(shape, rows, self.numerics))


def _plus(moment: Moment, activations: float) -> Moment:
    return replace(moment, activations=moment.activations + activations)
