"""Training: Algorithm 1, the learner, and the log-probabilities that both use."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import override

from brain_align.common.config.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class PriorSection(Section):
    """The scorer of the prior's log-probabilities, with the learner's numerics.

    Example:
        prior: {replicas: 1, gpus: 1}
    """

    replicas: int = Field(1, ge=1, description="number of replicas, each a process of its own")
    gpus: float = Field(0, ge=0, le=1, description="GPUs per replica, at most one")
    cpus: float = Field(1, gt=0, description="CPU cores that Ray reserves per replica")
    threads: int = Field(1, ge=1, description="CPU threads per replica")


class LogprobsSection(Section):
    """Use of log-probabilities. Their errors enter BRAIn's weights: 0.01 nats per token are 1 nat in 100 tokens.

    Example:
        logprobs: {proposal: recomputed}
    """

    proposal: Literal["sampler", "recomputed"] = Field(
        "sampler",
        description="the log q' that the objective uses. sampler: the sampler's own; recomputed: computed again by the "
        "prior's replicas",
    )
    gap_warning: float = Field(
        0.01, gt=0, description="warn if sampler and learner differ by more nats per token than this, on average"
    )


class AlgorithmSection(Section):
    """Algorithm 1 of the paper: the numbers of rounds, prompts and updates.

    Example:
        algorithm: {rounds: 5, prompts_per_round: 1600, updates_per_round: 200, batch_prompts: 8}
    """

    rounds: int = Field(5, ge=1, description="e, the number of rounds; each ends with a new proposal")
    prompts_per_round: int = Field(1600, ge=1, description="m, the number of prompts sampled per round")
    updates_per_round: int = Field(200, ge=1, description="k, the number of optimiser steps per round")
    batch_prompts: int = Field(8, ge=1, description="groups per optimiser step")
    buffer: Literal["latest", "accumulate"] = Field(
        "latest", description="groups that a round trains on. latest: its own; accumulate: all so far"
    )
    proposal: Literal["updated", "fixed"] | None = Field(
        None,
        description="fixed: every round is sampled from the prior, and published versions are only evaluated; updated: "
        "from the newest version; default: as in the objective's paper",
    )
    max_staleness: int = Field(
        0,
        ge=0,
        description="0: strict mode, which follows Algorithm 1 exactly; s: rounds may use versions that are "
        "up to s older, so that sampling and training overlap",
    )

    @property
    def strict(self) -> bool:
        """The run follows Algorithm 1 exactly and is repeatable: each request is sampled alone and committed whole."""
        return self.max_staleness == 0


class LearnerSection(Section):
    """The learner: optimiser (AdamW), memory and checkpoints.

    Example:
        learner: {learning_rate: 1.0e-5, ranks: 2, gpus: 1, zero_stage: 2, threads: 8}
    """

    learning_rate: float = Field(1e-5, gt=0, description="learning rate of AdamW, after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's decay rates of its two moments")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="of the learning rate after the warm-up; linear and cosine reach 0 at the end of the run",
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises linearly from 0")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0: no clipping")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="what ranks partition. 1: optimiser state; 2: gradients, too; 3: weights, too, even frozen ones",
    )
    offload_optimizer: bool = Field(
        False, description="keep optimiser state and update on the CPU; needs zero_stage 1 or more"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute each layer's activations in the backward pass: less memory, slower"
    )
    ranks: int = Field(1, ge=1, description="number of data-parallel processes")
    gpus: float = Field(0, ge=0, description="GPUs per rank")
    cpus: float = Field(1, gt=0, description="CPU cores that Ray reserves per rank")
    threads: int = Field(1, ge=1, description="CPU threads per rank")
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="tokens per forward pass; default: as many as fit into the device's memory"
    )
    max_skipped_in_a_row: int = Field(
        3,
        ge=0,
        description="consecutive steps that may be skipped as loss or gradient is not finite; one more ends the run",
    )
    checkpoint_steps: int = Field(50, ge=1, description="steps between checkpoints; each publication writes one, too")
    keep_checkpoints: int = Field(
        2, ge=1, description="how many of the newest checkpoints are kept, besides the best version's"
    )

    @override
    def problems(self) -> Iterator[str]:
        if self.offload_optimizer and self.zero_stage == 0:
            yield "offload_optimizer=true needs zero_stage=1 or more; one rank is enough for that"
