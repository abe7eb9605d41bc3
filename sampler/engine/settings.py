"""What vLLM's engine is started with: its arguments, and its environment."""

import os
from dataclasses import dataclass
from typing import Any

from brain_align.sampler.engine.worker import EXTENSION, SAMPLER_PID

TRANSFER_BACKEND = "brain"
"""What vLLM calls the way in which weights are sent to it; sampler/weights/transfer.py has it registered."""

_RECEIVING_EXTENSION = "brain_align.sampler.weights.transfer.ReceivingExtension"

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with.

    Attributes:
        model: directory or hub id of the base model.
        dtype: of weights and computation; the learner's own, so that both evaluate the same policy.
        adapter_rank: the largest rank of the LoRA adapters that will be loaded; None where whole models will be.
        adapters: how many of them can be held at once.
        receives: whether whole models are sent to it, besides being read from files.
        max_model_tokens: prompt and output together.
        tensor_parallel: devices that share each layer.
        repeatable: whether `sample` is to be given seeds.
        threads: CPU threads (ignored on GPU).
        kv_cache_gib: memory for keys and values on CPU (ignored on GPU).
        extra: further arguments of vLLM's engine, from `sampler.vllm`.
    """

    model: str
    dtype: str
    adapter_rank: int | None
    adapters: int
    receives: bool
    max_model_tokens: int
    tensor_parallel: int
    repeatable: bool
    threads: int
    kv_cache_gib: int
    extra: dict[str, Any]


def engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    """The arguments of vLLM's engine."""
    arguments: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "skip_tokenizer_init": True,
        "max_model_len": settings.max_model_tokens,
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "tensor_parallel_size": settings.tensor_parallel,
        "worker_extension_cls": EXTENSION,
        "disable_log_stats": True,
        "enforce_eager": _on_cpu(),
        "scheduling_policy": "priority",
    }
    if settings.receives:
        arguments["worker_extension_cls"] = _RECEIVING_EXTENSION
        arguments["weight_transfer_config"] = {"backend": TRANSFER_BACKEND}
    if settings.repeatable:
        arguments["async_scheduling"] = False  # the next step would be cut before it is known who has finished
        arguments["scheduling_policy"] = "fcfs"  # by priority, equals go by the clock
    if settings.adapter_rank is not None:
        rank = next(supported for supported in _LORA_RANKS if supported >= settings.adapter_rank)
        arguments |= {"enable_lora": True, "max_loras": settings.adapters, "max_lora_rank": rank}
    return arguments | settings.extra


def prepare_environment(settings: EngineSettings) -> None:
    """Set what vLLM reads from the environment, here and in its own processes, when it is imported."""
    os.environ.update(
        {
            SAMPLER_PID: str(os.getpid()),
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # actors share the cores; binding would stack them on the same ones
            "OMP_NUM_THREADS": str(settings.threads),
            "VLLM_NO_USAGE_STATS": "1",
        }
    )
    if _on_cpu():
        # the model runs eagerly there, but vLLM compiles one small sampling function: 20 s for nothing gained
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        # AsyncLLM has its core in another process in any case; this keeps the worker in there, too
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()
