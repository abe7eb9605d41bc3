"""The recipe: everything that a run is told, with bounds and defaults.

Defaults are those of the paper where it gives them (n = 32, T = 1, goodness temperature 1); the paper's text lost the
others, and the rest are ours. Paths are strings in which `{world}` stands for the directory that `prepare` made.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.config.data import DataSection
from common.config.objectives import ON_PRIOR_SAMPLES, BrainSection, ObjectiveSection, RsoSection
from common.config.scorers import CombinationSection, FunctionSection, ScorerPool, ScorerSection
from common.config.section import Name, Section
from common.schemas import HUMAN, PRIOR, PROPOSAL

Beta = Annotated[float, Field(ge=0, lt=1)]


class RunSection(Section):
    """Where a run lives."""

    dir: str = Field("runs/{name}", description="the run directory; running again on it resumes")


class StoreSection(Section):
    """Where the sample store lives; or, for a run without samplers, the store that it trains from."""

    uri: str | None = Field(
        None,
        description="directory, or URI of a file system that pyarrow knows (s3://…); default: <run.dir>/store. With "
        "sampler.replicas=0: the store to train from, or the directory of its run, which is only read",
    )
    replay: bool = Field(False, description="train the steps that store.uri records again, in their order")


class PrepareSection(Section):
    """A world to build first, where the models and data are not given: see deploy/worlds."""

    kind: Literal["demo", "hh", "tldr"] = Field(description="which world to build")
    cache: str = Field("build/worlds", description="directory that keeps built worlds")
    seed: int = Field(0, ge=0)


class AdapterSection(Section):
    """A new LoRA adapter."""

    r: int = Field(64, ge=1, le=512)
    alpha: float = Field(16, gt=0)
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )


class PolicySection(Section):
    """The SFT model: the prior p, and the starting point of the policy q."""

    model: str = Field(description="HF directory or hub id of the SFT model, or of the base of sft_adapter")
    tokenizer: str | None = Field(None, description="HF directory or hub id; default: the model's")
    sft_adapter: str | None = Field(
        None,
        description="directory or hub id of a LoRA adapter: the prior is the model with it, frozen, and the policy's "
        "adapter starts as its copy",
    )
    method: Literal["lora", "full"] = Field("lora", description="what is trained: an adapter, or all weights")
    adapter: AdapterSection | None = Field(
        None, description="shape of the adapter; default: that of sft_adapter, else AdapterSection's own defaults"
    )
    quantization: Literal["nf4"] | None = Field(
        None, description="nf4: the frozen model in 4 bits, doubly quantised (QLoRA, bitsandbytes)"
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @model_validator(mode="after")
    def _trains_something_that_can_be_trained(self) -> Self:
        if self.method == "lora":
            return self
        if self.quantization is not None:
            raise ValueError(
                f"quantization={self.quantization} freezes the weights that method=full trains; remove one of them"
            )
        if self.adapter is not None or self.sft_adapter is not None:
            raise ValueError(
                "method=full trains the model's own weights and no adapter; remove adapter, and merge sft_adapter into "
                "the model first"
            )
        return self


class SamplingSection(Section):
    """The proposal's distribution. Anything that truncates it breaks BRAIn's support condition."""

    n: int = Field(32, ge=2, description="outputs a prompt; BRAIn needs at least 2")
    max_tokens: int = Field(50, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 means no top-k")
    min_p: float = Field(0.0, ge=0, lt=1)
    repetition_penalty: float = Field(1.0, gt=0)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="strings that end an output; it ends with the token that completes one"
    )
    allow_tempered: bool = Field(
        False,
        description="sample at temperature != 1: q' is then not the policy, but its own tempered distribution",
    )
    allow_truncated_support: bool = Field(
        False,
        description="sample with top_p, top_k, min_p, penalties or stop: the weights are then those of a posterior "
        "that is cut down to what can be sampled so",
    )

    @model_validator(mode="after")
    def _keeps_the_proposal_contract(self) -> Self:
        truncating = self.truncating()
        if truncating and not self.allow_truncated_support:
            raise ValueError(
                f"{', '.join(truncating)} cuts outputs off from the proposal q', so that no importance weight can make "
                f"up for them (support(posterior) must lie in support(q')); remove it, or set "
                f"allow_truncated_support=true if you mean it"
            )
        if self.temperature != 1 and not self.allow_tempered:
            raise ValueError(
                f"temperature={self.temperature} makes the proposal q' another distribution than the policy; the "
                f"weights stay exact, but vary more; set temperature=1, or allow_tempered=true if you mean it"
            )
        return self

    def truncating(self) -> list[str]:
        """The settings that are set and make q' another distribution than the tempered policy."""
        neutral = {
            "top_p": 1,
            "top_k": 0,
            "min_p": 0,
            "repetition_penalty": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "stop": [],
        }
        return [name for name, value in neutral.items() if getattr(self, name) != value]

    @property
    def tokens_are_the_policy_s(self) -> bool:
        """Whether each token is drawn from the policy's own distribution; stop strings change only where it ends."""
        return self.temperature == 1 and set(self.truncating()) <= {"stop"}


_ENGINE_S_OWN = {
    "model",
    "dtype",
    "skip_tokenizer_init",
    "enable_lora",
    "max_lora_rank",
    "max_loras",
    "max_model_len",
    "logprobs_mode",
    "enable_prefix_caching",
    "quantization",
    "speculative_config",
    "seed",
    "async_scheduling",
    "scheduling_policy",
    "tensor_parallel_size",
    "data_parallel_size",
    "worker_extension_cls",
    "load_format",
    "generation_config",
    "override_generation_config",
    "disable_log_stats",
    "max_num_queued_reqs",
    "max_num_queued_tokens",
}
"""vLLM arguments that decide which distribution is sampled from, that the sampler's own work depends on, or that the
recipe says elsewhere."""


class AutoscaleSection(Section):
    """How many samplers there are: more when the learner waits for them, fewer when they run ahead of it."""

    min: int = Field(1, ge=1, description="fewest replicas")
    max: int = Field(ge=1, description="most replicas; Ray's own autoscaler brings the nodes")
    window: float = Field(60, gt=0, description="seconds that are looked at for a decision")
    up_when_waiting: float = Field(
        0.2, gt=0, le=1, description="share of the window that the learner waited for groups: from here on, one more"
    )
    down_when_ahead: float = Field(
        2.0, gt=0, description="ready groups for so many windows of training: from here on, one fewer"
    )
    settle: float = Field(120, ge=0, description="seconds without a decision after a change, once all replicas are up")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}")
        return self


class SamplerSection(Section):
    """The sampling service."""

    replicas: int = Field(1, ge=0, description="0: nothing is sampled, and training is on the groups of store.uri")
    gpus: float = Field(0, ge=0, description="GPUs a replica")
    cpus: float = Field(1, gt=0, description="CPU cores that Ray reserves for a replica")
    threads: int = Field(1, ge=1, description="CPU threads that a replica computes with")
    lease_prompts: int = Field(16, ge=1, description="prompts a lease: what one replica generates in one go")
    leases_in_flight: int = Field(
        2, ge=1, description="leases that a replica works on at once, to keep its batches full; 1 with max_staleness 0"
    )
    autoscale: AutoscaleSection | None = Field(
        None, description="add and remove replicas while the run goes on; default: as many as `replicas` says"
    )
    kv_cache_gib: int = Field(1, ge=1, description="CPU only: memory for keys and values")
    tensor_parallel: int = Field(1, ge=1, description="GPUs of a replica that share each layer")
    vllm: dict[str, bool | int | float | str] = Field(
        {}, description="further arguments of vLLM's engine, passed on as they are"
    )

    @model_validator(mode="after")
    def _keeps_the_engine_s_own(self) -> Self:
        taken = sorted(self.vllm.keys() & _ENGINE_S_OWN)
        if taken:
            raise ValueError(
                f"vllm.{', vllm.'.join(taken)} is set by the sampler itself, which relies on it; remove it"
            )
        return self

    @model_validator(mode="after")
    def _has_a_gpu_for_each_part(self) -> Self:
        if self.tensor_parallel > 1 and self.gpus != self.tensor_parallel:
            raise ValueError(
                f"tensor_parallel={self.tensor_parallel} shares each layer among as many GPUs of a replica, but gpus="
                f"{self.gpus:g}; set gpus={self.tensor_parallel}"
            )
        return self


class PriorSection(Section):
    """The scorer of prior log-probabilities, with the learner's numerics."""

    replicas: int = Field(1, ge=1)
    gpus: float = Field(0, ge=0, le=1, description="GPUs a replica, one at most")
    cpus: float = Field(1, gt=0)
    threads: int = Field(1, ge=1)


class LogprobsSection(Section):
    """Log-probabilities. BRAIn's weights take their errors at face value: 0.01 nats a token are 1 in 100 tokens."""

    proposal: Literal["sampler", "recomputed"] = Field(
        "sampler",
        description="whose log q' the objective uses: as sampled, or computed again by the prior's replicas",
    )
    gap_warning: float = Field(
        0.01, gt=0, description="warn where sampler and learner differ by more nats a token than this, on average"
    )


class AlgorithmSection(Section):
    """Algorithm 1: how many proposals, prompts and updates."""

    rounds: int = Field(5, ge=1, description="e: proposal updates")
    prompts_per_round: int = Field(1600, ge=1, description="m")
    updates_per_round: int = Field(200, ge=1, description="k")
    batch_prompts: int = Field(8, ge=1, description="groups an optimiser step")
    buffer: Literal["latest", "accumulate"] = "latest"
    proposal: Literal["updated", "fixed"] | None = Field(
        None,
        description="fixed: every round is sampled from the prior, and published versions are only evaluated; default: "
        "as in the objective's paper",
    )
    max_staleness: int = Field(
        0,
        ge=0,
        description="0: Algorithm 1 to the letter; s: a group is trained at most s versions after its own",
    )

    @property
    def strict(self) -> bool:
        """Whether the run is Algorithm 1 to the letter, and repeatable: each lease sampled on its own, and whole."""
        return self.max_staleness == 0


class LearnerSection(Section):
    """The learner's optimiser and memory."""

    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the learning rate after the warm-up; linear and cosine end at 0 with the run"
    )
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0 means no clipping")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="what ranks share out: 1 optimiser state, 2 also gradients, 3 also weights, frozen ones too",
    )
    offload_optimizer: bool = Field(False, description="optimiser state and update on the CPU (from ZeRO-1 on)")
    activation_checkpointing: bool = Field(False, description="recompute each layer's activations: less memory, slower")
    ranks: int = Field(1, ge=1, description="data-parallel processes")
    gpus: float = Field(0, ge=0, description="GPUs a rank")
    cpus: float = Field(1, gt=0, description="CPU cores that Ray reserves for a rank")
    threads: int = Field(1, ge=1, description="CPU threads that a rank computes with")
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="tokens of one forward pass; default: what the device has room for"
    )
    max_skipped_in_a_row: int = Field(
        3, ge=0, description="steps skipped because loss or gradient is not finite; one more in a row ends the run"
    )
    checkpoint_steps: int = Field(50, ge=1, description="steps between checkpoints; each publication makes one too")
    keep_checkpoints: int = Field(2, ge=1, description="the newest; that of the best version is kept besides")

    @model_validator(mode="after")
    def _offloads_what_is_sharded(self) -> Self:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer=true needs zero_stage=1 or more; one rank is enough for that")
        return self


class EvaluationSection(Section):
    """Held-back prompts: validation chooses the version, test is reported."""

    every_rounds: int = Field(1, ge=1)
    validation_prompts: int = Field(200, ge=1)
    test_prompts: int = Field(400, ge=1)
    examples: int = Field(5, ge=0, description="outputs shown side by side at the end")
    truth: str | None = Field(None, description="the scorer that knows the ground truth, where there is one")


class TimeoutsSection(Section):
    """How long anything is waited for, in seconds; the error names who was waited for."""

    start: float = Field(900, gt=0, description="an actor's start, model loading included")
    load: float = Field(600, gt=0, description="each phase of bringing a version to a sampler: verify, load, probe")
    lease: float = Field(1800, gt=0, description="one lease of sampling, or one call of a scorer")
    silence: float = Field(
        300, gt=0, description="a sampler that does not answer, or makes no progress, is taken for hung and restarted"
    )
    step: float = Field(1800, gt=0, description="one optimiser step, checkpoint or publication")


class RaySection(Section):
    """The Ray cluster. Inside a Ray job, that job's own cluster is used."""

    address: str | None = Field(None, description="an existing cluster; default: start one on this machine")
    num_cpus: int | None = Field(None, ge=1, description="cores that a cluster of our own offers to actors")


class Recipe(Section):
    """A complete run."""

    name: Name
    seed: int = Field(0, ge=0)
    run: RunSection = RunSection()
    store: StoreSection = StoreSection()
    prepare: PrepareSection | None = None
    data: DataSection
    policy: PolicySection
    sampling: SamplingSection = SamplingSection()
    sampler: SamplerSection = SamplerSection()
    scorers: dict[Name, ScorerSection] = Field(min_length=1)
    rewards: dict[Name, CombinationSection] = Field({}, description="rewards that are made of several scorers' values")
    prior: PriorSection = PriorSection()
    logprobs: LogprobsSection = LogprobsSection()
    objective: ObjectiveSection = BrainSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    learner: LearnerSection = LearnerSection()
    evaluation: EvaluationSection = EvaluationSection()
    timeouts: TimeoutsSection = TimeoutsSection()
    ray: RaySection = RaySection()

    def logprob_scorers(self) -> list[str]:
        """The names of the scorers that compute log-probabilities, on the prior's replicas."""
        return [PRIOR, PROPOSAL] if self.logprobs.proposal == "recomputed" else [PRIOR]

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        for name, meaning in _TAKEN.items():
            if name in self.scorers:
                raise ValueError(f"scorers.{name}: `{name}` is the name of {meaning}; choose another")
        truth = self.evaluation.truth
        if truth is not None:
            self._require_scorers([truth], "evaluation.truth", self.scorers)
        return self

    def scorer(self, name: str) -> ScorerPool | PriorSection:
        """The section of a scorer; log-probabilities of prior and proposals are some like the others."""
        return self.prior if name in self.logprob_scorers() else self.scorers[name]

    def groups_a_call(self, name: str) -> int:
        """How many groups a call of a scorer has at most: those of a lease, or fewer, for which there is time."""
        scorer, leased = self.scorer(name), self.sampler.lease_prompts
        if not isinstance(scorer, FunctionSection):
            return leased
        return min(leased, int(_TIME_FOR_FUNCTIONS * self.timeouts.lease / scorer.seconds_a_group))

    @model_validator(mode="after")
    def _functions_have_time(self) -> Self:
        for name, scorer in self.scorers.items():
            if isinstance(scorer, FunctionSection) and not self.groups_a_call(name):
                raise ValueError(
                    f"scorers.{name}.timeout={scorer.timeout:g} is for a group's outputs and again for its gold output,"
                    f" and a call of a scorer may take timeouts.lease={self.timeouts.lease:g} s; set the timeout to "
                    f"{_TIME_FOR_FUNCTIONS * self.timeouts.lease / 2:g} at most, or raise timeouts.lease"
                )
        return self

    @property
    def reward(self) -> str | CombinationSection:
        """What `objective.reward` names: a scorer, or a combination of several."""
        return self.rewards.get(self.objective.reward, self.objective.reward)

    @model_validator(mode="after")
    def _rewards_are_made_of_scorers(self) -> Self:
        both = sorted(self.rewards.keys() & self.scorers.keys())
        if both:
            raise ValueError(f"rewards.{both[0]} has the name of a scorer; choose another")
        for name, combination in self.rewards.items():
            self._require_scorers(combination.weights, f"rewards.{name}.weights", self.scorers)
        reward = self.objective.reward
        if reward not in self.rewards and reward != HUMAN:
            self._require_scorers([reward], "objective.reward", [*self.scorers, *self.rewards])
        for name in self.reward_scorers():
            if self.scorers[name].use != "training":
                raise ValueError(f"scorers.{name}.use must be `training`: the objective's reward needs it")
        return self

    def reward_scorers(self) -> list[str]:
        """The scorers whose values make the objective's reward; none where people's choices do."""
        if self.objective.reward == HUMAN:
            return []
        return [self.reward] if isinstance(self.reward, str) else list(self.reward.weights)

    @property
    def has_fixed_proposal(self) -> bool:
        """Whether every round is sampled from version 0, the prior."""
        if self.algorithm.proposal is not None:
            return self.algorithm.proposal == "fixed"
        return self.objective.OFFLINE or self.objective.name in ON_PRIOR_SAMPLES

    @model_validator(mode="after")
    def _the_objective_has_what_it_needs(self) -> Self:
        name = self.objective.name
        if name in ON_PRIOR_SAMPLES and self.algorithm.proposal == "updated":
            raise ValueError(
                f"objective.name={name} is defined on outputs of the prior, and algorithm.proposal=updated samples "
                f"from newer versions; remove that setting, or choose another objective"
            )
        if self.objective.needs_gold and self.sampler.replicas and self.data.gold_column is None:
            raise ValueError(
                f"objective.name={name} with sft_on=gold trains on gold texts, and data.gold_column names no column of "
                f"the prompt files; name it, or set objective.sft_on=best (chosen for dpo+nll)"
            )
        if self.objective.reward == HUMAN and self.sampler.replicas:
            raise ValueError(
                f"objective.name={name} with reward={HUMAN} trains on pairs that people chose between, which nobody "
                f"can sample; import a file with the columns prompt, chosen and rejected (brain store import-pairs), "
                f"and set sampler.replicas=0 and store.uri to the result; or choose dpo-sft, whose pairs the reward "
                f"ranks"
            )
        if isinstance(self.objective, RsoSection) and self.sampler.replicas:
            refusal = self.objective.refusal(self.sampling.n)
            if refusal is not None:
                raise ValueError(refusal)
        return self

    def _require_scorers(self, names: Iterable[str], where: str, choice: Iterable[str]) -> None:
        for name in names:
            if name not in self.scorers:
                raise ValueError(f"{where}={name!r} is no scorer of this recipe; there are {', '.join(choice)}")

    @model_validator(mode="after")
    def _the_learner_can_hold_the_policy(self) -> Self:
        policy, stage = self.policy, self.learner.zero_stage
        if policy.quantization is not None and stage == 3:
            raise ValueError(
                f"policy.quantization={policy.quantization} and learner.zero_stage=3 do not go together: DeepSpeed "
                f"cannot partition 4-bit weights; set zero_stage=2"
            )
        if policy.method == "full" and policy.dtype == "bfloat16" and stage == 0:
            raise ValueError(
                "policy.method=full in bfloat16 needs a float32 copy of the weights, which ZeRO keeps: set "
                "learner.zero_stage=1 or more (one rank is enough), or policy.dtype=float32"
            )
        if policy.method == "full" and policy.dtype == "bfloat16" and self.learner.offload_optimizer and stage < 3:
            raise ValueError(
                "learner.offload_optimizer=true with policy.method=full in bfloat16 needs learner.zero_stage=3 (one "
                "rank is enough): DeepSpeed's stages 1 and 2 do not recover there from a gradient that is not finite"
            )
        return self

    @model_validator(mode="after")
    def _recomputes_what_was_sampled_from(self) -> Self:
        if self.logprobs.proposal == "recomputed" and not self.sampling.tokens_are_the_policy_s:
            others = [*self.sampling.truncating(), *(["temperature"] if self.sampling.temperature != 1 else [])]
            raise ValueError(
                f"logprobs.proposal=recomputed computes the model's own distribution, but sampling."
                f"{', sampling.'.join(name for name in others if name != 'stop')} samples from another; remove it, or "
                f"set logprobs.proposal=sampler"
            )
        return self

    @model_validator(mode="after")
    def _has_groups_to_train_on(self) -> Self:
        if self.sampler.replicas == 0 and self.store.uri is None:
            raise ValueError(
                "sampler.replicas=0 samples nothing, so that training needs the groups of an existing store; set "
                "store.uri to it, or to the directory of its run"
            )
        if self.store.replay and self.sampler.replicas:
            raise ValueError("store.replay trains what a store records; set sampler.replicas=0")
        return self

    @model_validator(mode="after")
    def _one_round_fills_a_batch(self) -> Self:
        algorithm = self.algorithm
        if algorithm.batch_prompts > algorithm.prompts_per_round:
            raise ValueError(
                f"algorithm.batch_prompts={algorithm.batch_prompts} is more than "
                f"algorithm.prompts_per_round={algorithm.prompts_per_round}; a step cannot use a group twice"
            )
        return self


_TAKEN = {
    PRIOR: "the prior's log-probabilities",
    PROPOSAL: "the proposal's log-probabilities",
    HUMAN: "people's choices between two outputs",
}

_TIME_FOR_FUNCTIONS = 0.9
"""Of a call's: what is left is for the way there and back."""

OPERATIONAL = (
    "run.*",
    "store.uri",
    "ray.*",
    "timeouts.*",
    "prepare.cache",
    "sampler.replicas",
    "sampler.leases_in_flight",
    "sampler.autoscale",
    "sampler.autoscale.*",
    "sampler.gpus",
    "sampler.cpus",
    "sampler.tensor_parallel",
    "prior.replicas",
    "prior.gpus",
    "prior.cpus",
    "scorers.*.replicas",
    "scorers.*.gpus",
    "scorers.*.cpus",
    "scorers.*.timeout",
    "scorers.*.attempts",
    "scorers.*.backoff",
    "scorers.*.concurrency",
    "learner.ranks",
    "learner.gpus",
    "learner.cpus",
    "learner.threads",
    "learner.zero_stage",
    "learner.offload_optimizer",
    "learner.activation_checkpointing",
    "learner.micro_batch_tokens",
    "learner.max_skipped_in_a_row",
    "logprobs.gap_warning",
    "learner.checkpoint_steps",
    "learner.keep_checkpoints",
)
"""Settings that change how a run is computed, but not what it learns, but for the rounding of floats: they may differ
when a run is resumed."""
