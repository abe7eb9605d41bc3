"""What goes into the engine and comes out of it, in terms that are not vLLM's."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that the engine holds.

    Attributes:
        id: from 1 on, of one adapter only while the engine lives.
        digest: of its files; vLLM keeps the cached prefixes of adapters apart by it.
        directory: in PEFT's format.
    """

    id: int
    digest: str
    directory: Path


@dataclass
class WeightSource:
    """Where a version can be had.

    Attributes:
        server: "host:port" of a weight server.
        version: its number.
        digest: of its files; what does not have it is not taken.
        time_limit: seconds for the transfer, the digest included.
    """

    server: str
    version: int
    digest: str
    time_limit: float


class NotReceivedError(Exception):
    """A version was not received, and the engine is as before; the message says why."""


@dataclass(frozen=True)
class Completion:
    """One sampled output: ids, and log q' of each id in nats; EOS included only if it was generated."""

    token_ids: list[int]
    token_logprobs: list[float]
    finish_reason: str
