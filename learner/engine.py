"""DeepSpeed around the policy: sharded AdamW, gradient reduction, clipping.

The only file that imports deepspeed.
"""

import math
import os
from typing import Any

import torch
from torch import nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state

from common.config.recipe import LearnerSection
from common.nn.packing import Request
from learner.engine_protocol import OptimizerState

_MOMENTS = ("exp_avg", "exp_avg_sq")
_LARGEST_BUCKET = 50_000_000
"""Elements that ZeRO reduces at once; DeepSpeed's own default takes 2 GB whatever the size of the model."""


def join_ranks() -> None:
    """Join the process group that the environment describes, by NCCL on GPUs and by gloo on CPUs.

    It must have MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE and LOCAL_RANK.
    """
    # DeepSpeed would compile collectives of its own for CPUs (20 s, and a compiler at run time); gloo's do.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False)


class DeepSpeedEngine:
    """An `Engine` (learner/engine_protocol.py) on DeepSpeed, ZeRO 0 to 2; `join_ranks` comes before."""

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
            config=_config(settings, sum(value.numel() for value in self._parameters.values())),
            dist_init_required=False,
        )
        self._engine.eval()  # no dropout: the log-probabilities must be those of the stored outputs
        self.rank: int = torch.distributed.get_rank()
        self.ranks: int = torch.distributed.get_world_size()

    def logprobs(self, requests: list[Request]) -> torch.Tensor:
        """See `Engine`."""
        return self._engine(requests)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """See `Engine`."""
        # ZeRO-0 and -1 reduce at the boundary only, ZeRO-2 at every backward.
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

    def optimizer_state(self) -> OptimizerState:
        """See `Engine`."""
        state = self._adamw.state
        if not state:
            return OptimizerState(0, {})
        updates = int(next(iter(state.values()))["step"])
        return OptimizerState(
            updates,
            {
                name: {key: self._moment(value, key).cpu() for key in _MOMENTS}
                for name, value in self._parameters.items()
            },
        )

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """See `Engine`."""
        if not state.moments:
            return
        adamw = self._adamw
        for group in adamw.param_groups:
            for value in group["params"]:  # with ZeRO, this rank's part of all parameters, flat
                adamw.state[value] = {key: torch.zeros_like(value) for key in _MOMENTS}
                adamw.state[value]["step"] = torch.tensor(float(state.updates))
        if self._stage:
            # What DeepSpeed does after the first update: it notes where each parameter's moments lie.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, value in self._parameters.items():
            for key, moment in state.moments[name].items():
                self._set_moment(value, key, moment.to(value.device))

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        return self._engine.optimizer.optimizer if self._stage else self._engine.optimizer

    def _moment(self, parameter: nn.Parameter, key: str) -> torch.Tensor:
        return safe_get_full_optimizer_state(parameter, key) if self._stage else self._adamw.state[parameter][key]

    def _set_moment(self, parameter: nn.Parameter, key: str, moment: torch.Tensor) -> None:
        if self._stage:
            safe_set_full_optimizer_state(parameter, moment, key)
        else:
            self._adamw.state[parameter][key].copy_(moment)


def _config(settings: LearnerSection, trainable: int) -> dict[str, Any]:
    bucket = min(trainable, _LARGEST_BUCKET) // 2 * 2 + 2
    return {
        "train_micro_batch_size_per_gpu": 1,  # ours to count: see `backward`
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": settings.zero_stage,
            "overlap_comm": False,  # the order of summation must not depend on time
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
    }
