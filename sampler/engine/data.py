"""The engine's inputs and outputs, in terms that are not vLLM's."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that the engine holds."""

    id: int  # from 1 on; never given to another adapter while the engine lives
    digest: str  # of its files; vLLM keeps the cached prefixes of adapters apart by it
    directory: Path  # in PEFT's format


@dataclass(frozen=True)
class Completion:
    """One sampled output: ids, and log q' of each id in nats; EOS included only if it was generated."""

    token_ids: list[int]
    token_logprobs: list[float]
    finish_reason: str
