"""Sampling: the proposal's distribution, and the service that samples from it."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import override

from brain_align.common.config.section import Section


class SamplingSection(Section):
    """The proposal's distribution. Settings that truncate it break BRAIn's support condition, and must be allowed.

    Example:
        sampling: {n: 16, max_tokens: 128}
    """

    n: int = Field(32, ge=2, description="outputs per prompt; BRAIn needs at least 2")
    max_tokens: int = Field(50, ge=1, description="most tokens per output, the end of text included")
    temperature: float = Field(1.0, gt=0, description="sampling temperature; others than 1 need allow_tempered")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: the most likely tokens up to this probability")
    top_k: int = Field(0, ge=0, description="only the k most likely tokens; 0: all")
    min_p: float = Field(0.0, ge=0, lt=1, description="only tokens at least this likely, relative to the likeliest")
    repetition_penalty: float = Field(1.0, gt=0, description="divides the logits of tokens that occurred; 1: none")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="subtracted from the logits of tokens in the output")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="the same, times their number of occurrences")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="strings that end an output, after the token that completes one"
    )
    allow_tempered: bool = Field(
        False,
        description="allow a temperature other than 1: q' is then not the policy, but a tempered distribution",
    )
    allow_truncated_support: bool = Field(
        False,
        description="allow top_p, top_k, min_p, penalties and stop: the weights are then those of a posterior "
        "restricted to the outputs that can be sampled",
    )

    @override
    def problems(self) -> Iterator[str]:
        truncating = self.truncating()
        if truncating and not self.allow_truncated_support:
            yield (
                f"{', '.join(truncating)} cuts outputs off from the proposal q', and no importance weight can make up "
                f"for them (support(posterior) must lie in support(q')); remove it, or set "
                f"allow_truncated_support=true if you mean it"
            )
        if self.temperature != 1 and not self.allow_tempered:
            yield (
                f"temperature={self.temperature} makes the proposal q' a different distribution from the policy; the "
                f"weights stay exact, but vary more; set temperature=1, or allow_tempered=true if you mean it"
            )

    def truncating(self) -> list[str]:
        """Return the settings that make q' a different distribution from the tempered policy."""
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
        """Each token is drawn from the policy's own distribution; stop strings change only where an output ends."""
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
    "revision",
    "code_revision",
    "tokenizer_revision",
    "trust_remote_code",
    "hf_token",
}
"""vLLM arguments that determine the sampled distribution, that the sampler relies on, or that other settings decide."""


class AutoscaleSection(Section):
    """The number of samplers: more while the learner waits for groups, fewer while samplers run ahead of it.

    Example:
        sampler: {replicas: 2, autoscale: {min: 1, max: 8}}
    """

    min: int = Field(1, ge=1, description="fewest replicas")
    max: int = Field(ge=1, description="most replicas; Ray's own autoscaler adds the nodes")
    window: float = Field(60, gt=0, description="seconds of history that a decision is based on")
    up_when_waiting: float = Field(
        0.2, gt=0, le=1, description="add a replica if the learner waited for groups for this share of the window"
    )
    down_when_ahead: float = Field(
        2.0, gt=0, description="remove a replica if ready groups last for this many windows of training"
    )
    settle: float = Field(
        120, ge=0, description="seconds without decisions after a change, counted once all replicas are up"
    )

    @override
    def problems(self) -> Iterator[str]:
        if self.min > self.max:
            yield f"min={self.min} is more than max={self.max}"


class SamplerSection(Section):
    """The sampling service (vLLM); docs/sampler.md.

    Example:
        sampler: {replicas: 2, gpus: 1, vllm: {gpu_memory_utilization: 0.85}}
    """

    replicas: int = Field(
        1, ge=0, description="number of samplers; 0: nothing is sampled, training uses the groups of store.uri"
    )
    gpus: float = Field(0, ge=0, description="GPUs per replica")
    cpus: float = Field(1, gt=0, description="CPU cores that Ray reserves per replica")
    threads: int = Field(1, ge=1, description="CPU threads per replica")
    lease_prompts: int = Field(16, ge=1, description="prompts per request to a replica (lease)")
    leases_in_flight: int = Field(
        2,
        ge=1,
        description="requests that a replica works on at once, to keep its batches full; 1 with max_staleness 0",
    )
    autoscale: AutoscaleSection | None = Field(
        None, description="add and remove replicas during the run; default: their number is `replicas`"
    )
    delivery: Literal["auto", "files", "transfer", "merged"] = Field(
        "auto",
        description="how versions get into samplers. files: they read adapters, which vLLM computes with beside the "
        "model, or whole models; merged: they add adapters to the model's weights, which is several times faster on "
        "CPUs, and works where vLLM has no adapters for the model; transfer: the learner sends whole models, and "
        "samplers read the files if that fails; auto: merged for adapters on CPUs with max_staleness 0 and where vLLM "
        "has none for the model, otherwise files",
    )
    kv_cache_gib: int = Field(1, ge=1, description="CPU only: GiB of memory for keys and values")
    tensor_parallel: int = Field(1, ge=1, description="GPUs per replica that share each layer")
    vllm: dict[str, bool | int | float | str] = Field(
        {}, description="further arguments of vLLM's engine, passed on unchanged"
    )

    @override
    def problems(self) -> Iterator[str]:
        taken = sorted(self.vllm.keys() & _ENGINE_S_OWN)
        if taken:
            yield f"vllm.{', vllm.'.join(taken)} is set by the sampler itself, which relies on it; remove it"
        if "hf_token" in self.vllm:
            yield "vllm.hf_token is a secret, which recipes never hold; remove it, and set the variable HF_TOKEN"
        if self.vllm.get("trust_remote_code"):
            yield "vllm.trust_remote_code would run programs that come with a model; remove it"
        if self.tensor_parallel > 1 and self.gpus != self.tensor_parallel:
            yield (
                f"tensor_parallel={self.tensor_parallel} needs as many GPUs per replica, but gpus={self.gpus:g}; "
                f"set gpus={self.tensor_parallel}"
            )
