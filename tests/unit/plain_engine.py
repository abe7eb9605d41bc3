"""The learner's engine on torch alone: what DeepSpeed's must be equal to, and what unit tests train with."""

import copy
import math

import torch

from learner.engine_protocol import OptimizerState


class PlainEngine:
    """One rank, AdamW, clipping by the global norm."""

    rank = 0
    ranks = 1

    def __init__(self, module, settings):
        self.module = module
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

    def optimizer_state(self):
        states = self.optimizer.state
        if not states:
            return OptimizerState(0, {})
        moments = {
            name: {key: states[value][key].clone() for key in ("exp_avg", "exp_avg_sq")}
            for name, value in self.parameters.items()
        }
        return OptimizerState(int(next(iter(states.values()))["step"]), moments)

    def load_optimizer_state(self, state):
        for name, moments in state.moments.items():
            own = {"step": torch.tensor(float(state.updates)), **copy.deepcopy(moments)}
            self.optimizer.state[self.parameters[name]] = own
