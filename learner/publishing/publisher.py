"""Publication of the policy as a proposal version: the files, a probe of the policy, and the address that serves both.

    Publisher.publish -> policies/v000007/ (common/policies.py) -> samplers that read its files
                           `- address -> weight server (server_process.py starts weight_server.py) -> samplers that ask

The sampler's side is `brain_align.sampler.weights`.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedConfig

from brain_align.common.nn.logprobs import SequenceLogprobs, request_of
from brain_align.common.nn.models.adapters import save_adapter
from brain_align.common.nn.models.configuration import context_length
from brain_align.common.nn.models.saving import save_causal_lm
from brain_align.common.nn.prefix.packing import Request
from brain_align.common.policies import PolicyRegistry, Probe
from brain_align.learner.engine_protocol import Engine, NamedTensors, seen_by_rank_0, write_on_rank_0
from brain_align.learner.publishing.server_process import WeightServerProcess

_MODEL = "model."
"""The prefix of the names of the model's parameters within `SequenceLogprobs`."""

_HALF = 8
"""Tokens of a probe's prompt and of its continuation: few enough to be cheap, too many to agree by chance."""
_STRIDE = 7919  # a prime, so that the ids are spread over vocabularies of any size


class Publisher:
    """Publishes versions of one run; all ranks call it together, since each may hold a part of the weights."""

    def __init__(
        self, registry: PolicyRegistry, policy: SequenceLogprobs, engine: Engine, server: WeightServerProcess | None
    ) -> None:
        self._registry = registry
        self._policy = policy
        self._engine = engine
        self._server = server

    def publish(self, version: int, step: int) -> None:
        """Publish the weights after a step, unless the version exists already; return when all ranks can read it."""
        if seen_by_rank_0(self._engine, self._registry.is_published(version)):
            return
        probe = make_probe(self._engine.logprobs, self._policy.decoder.config)

        def write(weights: NamedTensors) -> None:
            address = None if self._server is None else self._server.address()
            self._registry.publish(version, step, lambda place: self._write_files(place, weights), probe, address)

        write_on_rank_0(self._engine, self._engine.weights(), write)

    def _write_files(self, directory: Path, weights: NamedTensors) -> None:
        """Write what samplers load: the adapter, or a whole model that transformers and vLLM read."""
        named = ((name.removeprefix(_MODEL), value) for name, value in weights)
        if isinstance(self._policy.model, PeftModel):
            save_adapter(self._policy.model, directory, dict(named))
        else:
            save_causal_lm(self._policy.model, directory, named)


@torch.no_grad()
def make_probe(logprobs: Callable[[list[Request]], torch.Tensor], config: PreTrainedConfig) -> Probe:
    """Compute the present policy's log-probabilities of a short, fixed text; all ranks make the probe together."""
    half = min(_HALF, context_length(config) // 2)
    text = [(position + 1) * _STRIDE % config.vocab_size for position in range(2 * half)]
    prompt, continuation = text[:half], text[half:]
    beginnings = [continuation[: length + 1] for length in range(half)]
    sums = logprobs([request_of(prompt, beginnings)]).double()
    each = torch.diff(sums, prepend=sums.new_zeros(1))  # a longer beginning has one token more
    return Probe(prompt, continuation, each.tolist())
