"""DeepSpeed around the policy: sharded AdamW, gradient reduction, clipping.

The only file that imports deepspeed.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig
from typing_extensions import override

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

from brain_align.common.config.training import LearnerSection
from brain_align.common.nn.prefix.packing import Request
from brain_align.common.system.network import have_gloo_listen_on
from brain_align.learner.engine_protocol import Engine, ParameterState, packed, unpacked
from brain_align.learner.policy import elements

_MOMENTS = ("exp_avg", "exp_avg_sq")
_LARGEST_BUCKET = 50_000_000
"""Elements that ZeRO reduces at once; DeepSpeed's own default takes 2 GB for any size of model."""
_LARGEST_UNSHARED = 100_000
"""Elements of the largest parameter that ZeRO-3 leaves whole on every rank (a layer norm's): DeepSpeed's default."""


def join_ranks(address: str) -> None:
    """Join the process group that the environment describes, by NCCL on GPUs and by gloo on CPUs.

    The environment must have MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE and LOCAL_RANK; `address` is this machine's,
    at which the other ranks reach it.
    """
    have_gloo_listen_on(address)
    # DeepSpeed would compile collectives of its own for CPUs, which takes 20 s and a compiler; gloo's suffice.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False)


class DeepSpeedEngine(Engine):
    """The learner's engine on DeepSpeed, ZeRO 0 to 3; call `join_ranks` before."""

    def __init__(self, module: nn.Module, settings: LearnerSection) -> None:
        self._parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self._stage = settings.zero_stage
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            model_parameters=list(self._parameters.values()),
            config=_config(settings, module),
            dist_init_required=False,
        )
        for value in module.buffers():
            value.data = value.to(self._engine.device)  # a partitioned model is not moved as a whole
        # Transformers recompute activations in training mode only. Dropout was removed at loading, so that the
        # log-probabilities are the same in either mode.
        self._engine.train(settings.activation_checkpointing)
        self.rank = torch.distributed.get_rank()
        self.ranks = torch.distributed.get_world_size()
        # From stage 2 on DeepSpeed reduces, and from 3 on gathers, within a pass: one that breaks off leaves traces.
        self.can_discard = self.ranks == 1 and self._stage < 2

    @staticmethod
    def loading(settings: LearnerSection, dtype: str) -> AbstractContextManager[None]:
        """Return a context in which transformers partition a model as they load it, for ZeRO-3."""
        return _partitioned_loading(dtype) if settings.zero_stage == 3 else nullcontext()

    @override
    def logprobs(self, requests: list[Request]) -> torch.Tensor:
        return self._engine(requests)

    @override
    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        # ZeRO-0 and -1 reduce at the boundary only, ZeRO-2 and -3 in every backward pass.
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    @override
    def step(self, learning_rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._stage:
            self._engine.step()  # changes nothing where the gradient is not finite
            return float(self._engine.get_global_grad_norm())
        gradients = [value.grad for value in self._parameters.values() if value.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return norm

    @override
    def discard_gradient(self) -> None:
        if self._stage:
            # DeepSpeed itself discards a gradient only in a step whose gradient is not finite.
            nothing = torch.stack([value.sum() for value in self._parameters.values()]).sum() * math.nan
            self.backward(nothing, last=True)
            self._engine.step()
        else:
            self._engine.zero_grad()

    @override
    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        summed = values.to(self._engine.device, copy=True)
        torch.distributed.all_reduce(summed)
        return summed.to(values.device)

    @override
    def gather(self, value: Any) -> list[Any]:
        # As torch's own collective of objects does, but what comes from another rank is data, never a program.
        mine = packed(value).to(self._engine.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(self.ranks)]
        torch.distributed.all_gather(sizes, torch.tensor([len(mine)], device=mine.device))
        longest = max(int(size) for size in sizes)
        all_ = [torch.zeros(longest, dtype=torch.uint8, device=mine.device) for _ in range(self.ranks)]
        torch.distributed.all_gather(all_, torch.nn.functional.pad(mine, (0, longest - len(mine))))
        return [unpacked(one[: int(size)]) for one, size in zip(all_, sizes, strict=True)]

    @override
    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._parameters.items():
            with self._whole(parameter):
                copy = parameter.detach().to("cpu", copy=True) if self.rank == 0 else None
            if copy is not None:
                yield name, copy

    @override
    def updates(self) -> int:
        state = self._adamw.state
        return int(next(iter(state.values()))["step"]) if state else 0

    @override
    def parameter_states(self) -> Iterator[tuple[str, ParameterState]]:
        updated = self.updates() > 0
        for name, parameter in self._parameters.items():
            weight = safe_get_full_fp32_param(parameter) if self._stage else parameter.detach()
            moments = {key: self._moment(parameter, key) for key in _MOMENTS} if updated else {}
            if self.rank == 0:
                on_cpu = {key: value.cpu() for key, value in moments.items()}
                yield name, ParameterState(weight.cpu(), on_cpu or None)

    @override
    @torch.no_grad()
    def load_parameter_states(self, updates: int, state_of: Callable[[str], ParameterState]) -> None:
        if updates:
            self._make_moments(updates)
        for name, parameter in self._parameters.items():
            state = state_of(name)
            with self._whole(parameter, written=True):
                parameter.copy_(state.weight)
            if self._stage:
                safe_set_full_fp32_param(parameter, state.weight.to(self._engine.device))
            for key, moment in (state.moments or {}).items():
                self._set_moment(parameter, key, moment.to(self._engine.device))

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        return self._engine.optimizer.optimizer if self._stage else self._engine.optimizer

    def _whole(self, parameter: nn.Parameter, *, written: bool = False) -> AbstractContextManager[None]:
        """Return a context in which a parameter has all its elements; `written` spreads rank 0's to all ranks."""
        if self._stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if written else None)

    def _make_moments(self, updates: int) -> None:
        """Give AdamW the state that its first update would create, all zeros."""
        adamw = self._adamw
        for value in self._optimized():
            adamw.state[value] = {key: torch.zeros_like(value) for key in _MOMENTS}
            adamw.state[value]["step"] = torch.tensor(float(updates))
        if self._stage in (1, 2):
            # As DeepSpeed does after the first update: it records where each parameter's moments lie.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _optimized(self) -> list[torch.Tensor]:
        """Return the tensors that AdamW updates: the parameters, or with ZeRO this rank's flat part of them."""
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [value for group in self._adamw.param_groups for value in group["params"]]

    def _moment(self, parameter: nn.Parameter, key: str) -> torch.Tensor:
        return safe_get_full_optimizer_state(parameter, key) if self._stage else self._adamw.state[parameter][key]

    def _set_moment(self, parameter: nn.Parameter, key: str, moment: torch.Tensor) -> None:
        if self._stage:
            safe_set_full_optimizer_state(parameter, moment, key)
        else:
            self._adamw.state[parameter][key].copy_(moment)


@contextmanager
def _partitioned_loading(dtype: str) -> Iterator[None]:
    """Keep a DeepSpeed configuration alive, for which transformers partition each weight as they load it."""
    configuration = HfDeepSpeedConfig(
        {
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": dtype == "bfloat16"},
            "zero_optimization": {"stage": 3},
        }
    )
    yield
    del configuration


def _config(settings: LearnerSection, module: nn.Module) -> dict[str, Any]:
    sizes = [elements(value) for value in module.parameters()]
    trainable = [value for value in module.parameters() if value.requires_grad]
    bucket = min(sum(map(elements, trainable)), _LARGEST_BUCKET) // 2 * 2 + 2
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "overlap_comm": False,  # the order of summation must not depend on timing
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket,
        "stage3_param_persistence_threshold": min(_LARGEST_UNSHARED, sum(sizes) // 1000),
    }
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,  # micro-batches are counted here: see `backward`
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "steps_per_print": None,
        # Adapters are float32 for any precision of the model; only full weights have a master copy.
        "bf16": {"enabled": any(value.dtype == torch.bfloat16 for value in trainable)},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it would be compiled at run time; torch's AdamW suffices
        "zero_optimization": zero,
    }
