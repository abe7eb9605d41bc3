"""The arguments and the environment of vLLM's engine."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_align.sampler.engine.worker import EXTENSION, SAMPLER_PID

TRANSFER_BACKEND = "brain"
"""The name under which sampler/weights/transfer.py registers its transfer engine with vLLM."""

_RECEIVING_EXTENSION = "brain_align.sampler.weights.transfer.ReceivingExtension"
_MERGING_EXTENSION = "brain_align.sampler.weights.merging.MergingExtension"

_CPU_BLOCK_SIZE = 32
"""Tokens per block of the KV cache on CPUs, the least that vLLM's attention takes there.

The n outputs of a prompt share its full blocks and compute the rest each for itself; in vLLM's blocks of 128 tokens, a
shorter prompt is computed n times.
"""

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # vLLM has kernels for these


@dataclass(frozen=True)
class EngineSettings:
    """The settings that an engine is started with."""

    model: str  # directory or hub id of the base model
    dtype: str  # of weights and computation; the learner's own, so that both evaluate the same policy
    adapter_rank: int | None  # the largest rank of the LoRA adapters to load; None where it computes without adapters
    adapters: int  # held at once
    receives: bool  # whether whole models are sent to it, besides being read from files
    merges: bool  # whether adapters are added to its weights
    max_model_tokens: int  # prompt and output together
    tensor_parallel: int  # devices that share each layer
    repeatable: bool  # whether `sample` will be called with seeds
    threads: int  # ignored on GPUs
    kv_cache_gib: int  # memory for keys and values; ignored on GPUs
    extra: dict[str, Any]  # further arguments of vLLM's engine, from `sampler.vllm`


def engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    """Return the arguments of vLLM's engine."""
    model, revision = settings.model, ""
    if not Path(model).is_dir():  # a hub id
        model, _, revision = model.partition("@")
    on_cpu = _on_cpu()
    arguments: dict[str, Any] = {
        "model": model,
        "revision": revision or None,
        "trust_remote_code": False,
        "dtype": settings.dtype,
        "skip_tokenizer_init": True,
        "max_model_len": settings.max_model_tokens,
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "tensor_parallel_size": settings.tensor_parallel,
        "worker_extension_cls": EXTENSION,
        "disable_log_stats": True,
        "enforce_eager": on_cpu,
        "scheduling_policy": "priority",
    }
    if on_cpu:
        arguments["block_size"] = _CPU_BLOCK_SIZE
    if settings.receives:
        arguments["worker_extension_cls"] = _RECEIVING_EXTENSION
        arguments["weight_transfer_config"] = {"backend": TRANSFER_BACKEND}
    if settings.merges:
        arguments["worker_extension_cls"] = _MERGING_EXTENSION
    if settings.repeatable:
        arguments["async_scheduling"] = False  # it composes the next step before it is known which outputs finished
        arguments["scheduling_policy"] = "fcfs"  # the priority policy orders equals by their time of arrival
    if settings.adapter_rank is not None:
        rank = next(supported for supported in _LORA_RANKS if supported >= settings.adapter_rank)
        arguments |= {"enable_lora": True, "max_loras": settings.adapters, "max_lora_rank": rank}
    return arguments | settings.extra


def prepare_environment(settings: EngineSettings) -> None:
    """Set the variables that vLLM reads when it is imported, here and in its own processes."""
    os.environ.update(
        {
            SAMPLER_PID: str(os.getpid()),
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # actors share the cores; binding would put them on the same ones
            "OMP_NUM_THREADS": str(settings.threads),
            "VLLM_NO_USAGE_STATS": "1",
        }
    )
    if _on_cpu():
        # The model runs eagerly there, but vLLM would compile one small sampling function, which takes 20 s.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        # AsyncLLM has its core in another process in any case; this keeps the worker in that process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()
