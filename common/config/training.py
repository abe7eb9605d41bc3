"""Training: Algorithm 1, the learner, and the log-probabilities that both rest on."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from brain_align.common.config.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class PriorSection(Section):
    """The scorer of prior log-probabilities, with the learner's numerics."""

    replicas: int = Field(1, ge=1)
    gpus: float = Field(0, ge=0, le=1, description="GPUs a replica, one at most")
    cpus: float = Field(1, gt=0)
    threads: int = Field(1, ge=1)


class LogprobsSection(Section):
    """Log-probabilities. BRAIn's weights take their errors at face value: 0.01 nats a token are 1 in 100 tokens."""

    proposal: Literal["sampler", "recomputed"] = Field(
        "sampler",
        description="whose log q' the objective uses: as sampled, or computed again by the prior's replicas",
    )
    gap_warning: float = Field(
        0.01, gt=0, description="warn where sampler and learner differ by more nats a token than this, on average"
    )


class AlgorithmSection(Section):
    """Algorithm 1: how many proposals, prompts and updates."""

    rounds: int = Field(5, ge=1, description="e: proposal updates")
    prompts_per_round: int = Field(1600, ge=1, description="m")
    updates_per_round: int = Field(200, ge=1, description="k")
    batch_prompts: int = Field(8, ge=1, description="groups an optimiser step")
    buffer: Literal["latest", "accumulate"] = "latest"
    proposal: Literal["updated", "fixed"] | None = Field(
        None,
        description="fixed: every round is sampled from the prior, and published versions are only evaluated; default: "
        "as in the objective's paper",
    )
    max_staleness: int = Field(
        0,
        ge=0,
        description="0: Algorithm 1 to the letter; s: a group is trained at most s versions after its own",
    )

    @property
    def strict(self) -> bool:
        """Whether the run is Algorithm 1 to the letter, and repeatable: each lease sampled on its own, and whole."""
        return self.max_staleness == 0


class LearnerSection(Section):
    """The learner's optimiser and memory."""

    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the learning rate after the warm-up; linear and cosine end at 0 with the run"
    )
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0 means no clipping")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="what ranks share out: 1 optimiser state, 2 also gradients, 3 also weights, frozen ones too",
    )
    offload_optimizer: bool = Field(False, description="optimiser state and update on the CPU (from ZeRO-1 on)")
    activation_checkpointing: bool = Field(False, description="recompute each layer's activations: less memory, slower")
    ranks: int = Field(1, ge=1, description="data-parallel processes")
    gpus: float = Field(0, ge=0, description="GPUs a rank")
    cpus: float = Field(1, gt=0, description="CPU cores that Ray reserves for a rank")
    threads: int = Field(1, ge=1, description="CPU threads that a rank computes with")
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="tokens of one forward pass; default: what the device has room for"
    )
    max_skipped_in_a_row: int = Field(
        3, ge=0, description="steps skipped because loss or gradient is not finite; one more in a row ends the run"
    )
    checkpoint_steps: int = Field(50, ge=1, description="steps between checkpoints; each publication makes one too")
    keep_checkpoints: int = Field(2, ge=1, description="the newest; that of the best version is kept besides")

    @model_validator(mode="after")
    def _offloads_what_is_sharded(self) -> Self:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer=true needs zero_stage=1 or more; one rank is enough for that")
        return self
