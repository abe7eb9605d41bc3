"""The learner's engine on torch alone: what DeepSpeed's must be equal to, and what unit tests train with."""

import math
from contextlib import nullcontext

import torch

from brain_align.learner.engine_protocol import ParameterState

MOMENTS = ("exp_avg", "exp_avg_sq")


class PlainEngine:
    """One rank, AdamW, clipping by the global norm."""

    rank = 0
    ranks = 1
    can_discard = True

    def __init__(self, module, settings):
        self.module = module.train(settings.activation_checkpointing)
        self.max_grad_norm = settings.max_grad_norm
        self.parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.forward_passes = 0
        self.complete = False

    @staticmethod
    def loading(settings, dtype):
        return nullcontext()

    def logprobs(self, requests):
        self.forward_passes += 1
        return self.module(requests)

    def backward(self, loss, *, last):
        assert not self.complete, "a backward pass after the one that was announced as the last"
        self.complete = last
        loss.backward()

    def step(self, learning_rate):
        assert self.complete
        self.complete = False
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = float(torch.nn.utils.get_total_norm([value.grad for value in self.parameters.values()]))
        if math.isfinite(norm):
            if self.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def discard_gradient(self):
        self.complete = False
        self.optimizer.zero_grad()

    def sum_over_ranks(self, values):
        return values.clone()

    def gather(self, value):
        return [value]

    def weights(self):
        for name, value in self.parameters.items():
            yield name, value.detach().clone()

    def updates(self):
        states = self.optimizer.state
        return int(next(iter(states.values()))["step"]) if states else 0

    def parameter_states(self):
        for name, value in self.parameters.items():
            moments = {key: self.optimizer.state[value][key].clone() for key in MOMENTS} if self.updates() else None
            yield name, ParameterState(value.detach().float(), moments)

    @torch.no_grad()
    def load_parameter_states(self, updates, state_of):
        for name, value in self.parameters.items():
            state = state_of(name)
            value.copy_(state.weight)
            if state.moments:
                own = {key: moment.to(value.dtype) for key, moment in state.moments.items()}
                self.optimizer.state[value] = {"step": torch.tensor(float(updates)), **own}
