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
from brain_align.learner.engine_protocol import ParameterState
from brain_align.learner.policy import elements

_MOMENTS = ("exp_avg", "exp_avg_sq")
_LARGEST_BUCKET = 50_000_000
"""Elements that ZeRO reduces at once; DeepSpeed's own default takes 2 GB whatever the size of the model."""
_LARGEST_UNSHARED = 100_000
"""Elements of the largest parameter that ZeRO-3 leaves whole on every rank (a layer norm's): DeepSpeed's default."""


def join_ranks() -> None:
    """Join the process group that the environment describes, by NCCL on GPUs and by gloo on CPUs.

    It must have MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE and LOCAL_RANK.
    """
    # DeepSpeed would compile collectives of its own for CPUs (20 s, and a compiler at run time); gloo's do.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False)


class DeepSpeedEngine:
    """An `Engine` (learner/engine_protocol.py) on DeepSpeed, ZeRO 0 to 3; `join_ranks` comes before."""

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
            value.data = value.to(self._engine.device)  # what was loaded partitioned is not moved as a whole
        # Transformers recompute activations in training mode only. There is no dropout that it could bring back: the
        # log-probabilities are those of the stored outputs in either mode.
        self._engine.train(settings.activation_checkpointing)
        self.rank: int = torch.distributed.get_rank()
        self.ranks: int = torch.distributed.get_world_size()
        # From stage 2 on DeepSpeed reduces, and from 3 on gathers, as it goes: a pass that breaks off leaves traces.
        self.can_discard = self.ranks == 1 and self._stage < 2

    @staticmethod
    def loading(settings: LearnerSection, dtype: str) -> AbstractContextManager[None]:
        """See `EngineType`."""
        return _partitioned_loading(dtype) if settings.zero_stage == 3 else nullcontext()

    def logprobs(self, requests: list[Request]) -> torch.Tensor:
        """See `Engine`."""
        return self._engine(requests)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """See `Engine`."""
        # ZeRO-0 and -1 reduce at the boundary only, ZeRO-2 and -3 at every backward.
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._stage:
            self._engine.step()  # leaves everything as it is where the gradient is not finite
            return float(self._engine.get_global_grad_norm())
        gradients = [value.grad for value in self._parameters.values() if value.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return norm

    def discard_gradient(self) -> None:
        """See `Engine`."""
        if self._stage:
            # DeepSpeed's own way of starting afresh is a step whose gradient is not finite.
            nothing = torch.stack([value.sum() for value in self._parameters.values()]).sum() * math.nan
            self.backward(nothing, last=True)
            self._engine.step()
        else:
            self._engine.zero_grad()

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """See `Engine`."""
        summed = values.to(self._engine.device, copy=True)
        torch.distributed.all_reduce(summed)
        return summed.to(values.device)

    def gather(self, value: Any) -> list[Any]:
        """See `Engine`."""
        gathered: list[Any] = [None] * self.ranks
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Engine`."""
        for name, parameter in self._parameters.items():
            with self._whole(parameter):
                copy = parameter.detach().to("cpu", copy=True) if self.rank == 0 else None
            if copy is not None:
                yield name, copy

    def updates(self) -> int:
        """See `Engine`."""
        state = self._adamw.state
        return int(next(iter(state.values()))["step"]) if state else 0

    def parameter_states(self) -> Iterator[tuple[str, ParameterState]]:
        """See `Engine`."""
        updated = self.updates() > 0
        for name, parameter in self._parameters.items():
            weight = safe_get_full_fp32_param(parameter) if self._stage else parameter.detach()
            moments = {key: self._moment(parameter, key) for key in _MOMENTS} if updated else {}
            if self.rank == 0:
                on_cpu = {key: value.cpu() for key, value in moments.items()}
                yield name, ParameterState(weight.cpu(), on_cpu or None)

    @torch.no_grad()
    def load_parameter_states(self, updates: int, state_of: Callable[[str], ParameterState]) -> None:
        """See `Engine`."""
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
        """Within it, a parameter has all its elements; `written`: rank 0's are then everyone's."""
        if self._stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if written else None)

    def _make_moments(self, updates: int) -> None:
        """Give AdamW the state that it makes at its first update, all zeros."""
        adamw = self._adamw
        for value in self._optimized():
            adamw.state[value] = {key: torch.zeros_like(value) for key in _MOMENTS}
            adamw.state[value]["step"] = torch.tensor(float(updates))
        if self._stage in (1, 2):
            # What DeepSpeed does after the first update: it notes where each parameter's moments lie.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _optimized(self) -> list[torch.Tensor]:
        """What AdamW updates: the parameters, or with ZeRO this rank's part of all of them, flat."""
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
    """Transformers partition each weight as it is loaded while there is a DeepSpeed configuration that asks for it."""
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
        "overlap_comm": False,  # the order of summation must not depend on time
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket,
        "stage3_param_persistence_threshold": min(_LARGEST_UNSHARED, sum(sizes) // 1000),
    }
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,  # ours to count: see `backward`
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "steps_per_print": None,
        # Adapters are float32 whatever the model's precision; only full weights have a master copy.
        "bf16": {"enabled": any(value.dtype == torch.bfloat16 for value in trainable)},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it would be compiled at run time; torch's AdamW does
        "zero_optimization": zero,
    }
