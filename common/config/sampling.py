"""Sampling: the proposal's distribution, and the service that draws from it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from brain_align.common.config.section import Section


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
    "weight_transfer_config",
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
    delivery: Literal["files", "transfer"] = Field(
        "files",
        description="how the weights of whole models come: read from their files, or sent by the learner, and read "
        "where that does not work",
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
