"""vLLM behind one class: the only file that knows its interface, which changes between releases."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.recipe import SamplingSection
from common.errors import PipelineError

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with.

    Attributes:
        model: directory or hub id of the base model.
        dtype: of weights and computation; the learner's own, so that both evaluate the same policy.
        adapter_rank: rank of the LoRA adapters that will be loaded; None where whole models will be.
        max_model_tokens: prompt and output together.
        threads: CPU threads (ignored on GPU).
        kv_cache_gib: memory for keys and values on CPU (ignored on GPU).
        extra: further arguments of vLLM's engine, from `sampler.vllm`.
    """

    model: str
    dtype: str
    adapter_rank: int | None
    max_model_tokens: int
    threads: int
    kv_cache_gib: int
    extra: dict[str, Any]


@dataclass(frozen=True)
class Completion:
    """One sampled output: ids, and log q' of each id in nats; EOS included only if it was generated."""

    token_ids: list[int]
    token_logprobs: list[float]
    finish_reason: str


class Engine:
    """A vLLM engine in this process that samples from one proposal version after another: adapters or full weights.

    The log-probabilities are those of the distribution sampled from (`processed_logprobs`; vLLM's default would ignore
    the temperature), and a lease's result depends on its prompts, version and seed alone: sampling is reseeded and the
    prefix cache emptied before each, because vLLM draws from one generator for all requests and has no seeds of their
    own for requests on CPU.
    """

    def __init__(self, settings: EngineSettings) -> None:
        _prepare_environment(settings)
        from vllm import LLM  # heavy, and reads the environment when imported

        self._llm = LLM(
            model=settings.model,
            dtype=settings.dtype,
            skip_tokenizer_init=True,
            max_model_len=settings.max_model_tokens,
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            **_lora_arguments(settings.adapter_rank),
            **({"enforce_eager": _on_cpu()} | settings.extra),
        )
        self._adapters = settings.adapter_rank is not None
        self._loaded: Path | None = None  # the version whose full weights the engine has
        self._adapter_ids: dict[Path, int] = {}  # vLLM's; several runs' versions have the same numbers

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingSection,
        *,
        n: int,
        eos_token_id: int,
        seed: int,
        version: int,
        directory: Path,
    ) -> list[list[Completion]]:
        """Sample n outputs for each prompt from one proposal version.

        Args:
            prompts: token ids of each prompt.
            sampling: temperature and length; the recipe has refused what breaks the proposal contract.
            n: outputs a prompt.
            eos_token_id: ends an output; it is then the output's last id.
            seed: of this call; equal calls give equal results.
            version: of the proposal.
            directory: its files: an adapter (PEFT format), or a whole model (HF format).

        Raises:
            PipelineError: vLLM returned something else than was asked for.
        """
        from vllm import SamplingParams

        if not self._adapters:
            self._load_weights(directory)
        parameters = SamplingParams(
            n=n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            stop_token_ids=[eos_token_id],
            logprobs=0,  # the sampled token's own, and no other
            detokenize=False,
        )
        if not self._llm.reset_prefix_cache():
            raise PipelineError("vLLM did not empty its prefix cache, so that the sample would depend on earlier ones.")
        self._llm.collective_rpc(_seed_worker, args=(seed,))
        results = self._llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            parameters,
            lora_request=self._lora_request(version, directory) if self._adapters else None,
            use_tqdm=False,
        )
        groups = [[_completion(output) for output in result.outputs] for result in results]
        if len(groups) != len(prompts) or any(len(group) != n for group in groups):
            raise PipelineError(f"vLLM returned {[len(group) for group in groups]} outputs, not {n} for each prompt.")
        return groups

    def _lora_request(self, version: int, directory: Path) -> Any:
        from vllm.lora.request import LoRARequest

        number = self._adapter_ids.setdefault(directory, len(self._adapter_ids) + 1)  # ids start at 1
        return LoRARequest(f"v{version}-{number}", number, str(directory))

    def _load_weights(self, directory: Path) -> None:
        """Put a version's full weights in place of the engine's; `generate` empties the prefix cache after it."""
        if directory == self._loaded:
            return
        self._loaded = None  # should loading fail half-way
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        self._llm.collective_rpc(_repack_output_layer)
        self._loaded = directory


def _lora_arguments(rank: int | None) -> dict[str, Any]:
    if rank is None:
        return {}
    supported = next(supported for supported in _LORA_RANKS if supported >= rank)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": supported}


def _prepare_environment(settings: EngineSettings) -> None:
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the engine in this process: half the start-up, and it dies with us
        VLLM_ALLOW_INSECURE_SERIALIZATION="1",  # lets collective_rpc take a function; nothing leaves this process
        VLLM_CPU_KVCACHE_SPACE=str(settings.kv_cache_gib),
        VLLM_CPU_OMP_THREADS_BIND="nobind",  # actors share the cores; binding would stack them on the same ones
        OMP_NUM_THREADS=str(settings.threads),
        VLLM_NO_USAGE_STATS="1",
    )
    if _on_cpu():
        # the model runs eagerly there, but vLLM compiles one small sampling function: 20 s for nothing gained
        os.environ["TORCHDYNAMO_DISABLE"] = "1"


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _seed_worker(_worker: Any, seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _repack_output_layer(worker: Any) -> None:
    """Pack the output layer's weights anew: on CPUs `reload_weights` leaves the old ones where they are tied."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in worker.model_runner.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _completion(output: Any) -> Completion:
    logprobs = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
    return Completion(list(output.token_ids), logprobs, output.finish_reason)
