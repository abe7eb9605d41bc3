"""The surroundings of the algorithm: where a run is stored, what it builds first, how it is judged, its time limits."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from brain_align.common.config.inputs import AdapterSection
from brain_align.common.config.section import Section


class RunSection(Section):
    """The directory of the run.

    Example:
        run: {dir: runs/mine}
    """

    dir: str = Field("runs/{name}", description="the run directory; running again with the same one resumes the run")


class StoreSection(Section):
    """The sample store; or, for a run without samplers, the store that it trains from.

    Example:
        store: {uri: "s3://bucket/store?region=eu-west-1"}
    """

    uri: str | None = Field(
        None,
        description="directory, or URI of a file system that pyarrow knows (s3://…); default: <run.dir>/store. With "
        "sampler.replicas=0: the store to train from, or its run's directory, which is only read",
    )
    replay: bool = Field(False, description="train the steps that store.uri records again, in the same order")


class SftSection(Section):
    """Supervised fine-tuning of the policy on reference outputs, from `prepare.base`.

    Example:
        prepare: {kind: hh, base: org/chat-model, sft: {examples: 5000, learning_rate: 1.0e-4}}
    """

    examples: int | None = Field(1000, ge=1, description="at most this many, drawn at random; null: all")
    epochs: float = Field(1, gt=0, description="passes over them")
    learning_rate: float = Field(2e-4, gt=0, description="highest learning rate; it rises from 0, and falls to 0 again")
    batch: int = Field(16, ge=1, description="examples per optimiser step")


class RewardModelSection(Section):
    """Training of the reward model, and of the gold judge on other pairs, from `prepare.base`.

    Example:
        prepare: {kind: hh, base: org/chat-model, reward: {pairs: 20000, learning_rate: 1.0e-4}}
    """

    pairs: int | None = Field(None, ge=1, description="at most this many for each of the two; null: half of all each")
    epochs: float = Field(1, gt=0, description="passes over them")
    learning_rate: float = Field(3e-4, gt=0, description="highest learning rate; it rises from 0, and falls to 0 again")
    batch: int = Field(16, ge=1, description="pairs per optimiser step")


class PrepareSection(Section):
    """What is built before the run: a toy task; or, with `base`, SFT policy and reward models (docs/prepare.md).

    Example:
        prepare: {kind: hh, base: HuggingFaceTB/SmolLM2-135M-Instruct}
    """

    OPERATIONAL: ClassVar = {"cache", "device", "micro_batch_tokens", "activation_checkpointing"}
    """Settings that do not decide what is built, but for the rounding of floats."""

    kind: Literal["demo", "hh", "tldr"] = Field(description="what to build; `{world}` in paths is its directory")
    base: str | None = Field(
        None,
        description="directory or hub id (with `@revision`, too) of a pretrained language model, from which SFT policy "
        "and reward models are fine-tuned; null: small models are trained from scratch",
    )
    cache: str = Field(
        "build/worlds",
        description="directory that keeps what was built; inside a Ray job, relative to where the run directory lies",
    )
    seed: int = Field(0, ge=0, description="seed of what is built")
    adapter: AdapterSection | None = Field(
        AdapterSection(r=16, alpha=32),
        description="with base: LoRA adapters are trained, and merged at the end; null: all weights are trained",
    )
    layers: int | None = Field(
        None, ge=1, description="with base: only so many of the last layers get adapters, which is faster; null: all"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="with base: type of computations and of the models written"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="with base: auto: a GPU if there is one")
    max_prompt_tokens: int = Field(
        192, ge=1, description="with base: longer prompts are left out of the splits, and cut from the left in pairs"
    )
    max_output_tokens: int = Field(
        64, ge=1, description="with base: longer reference outputs are left out of the splits and of SFT"
    )
    max_pair_tokens: int = Field(
        256, ge=8, description="with base: prompt and output that reward models read, cut from the left"
    )
    held_out_pairs: int = Field(
        1000, ge=20, description="with base: pairs that no model is trained on; the splits' prompts are theirs"
    )
    micro_batch_tokens: int = Field(4096, ge=1, description="with base: padded tokens per forward pass, at most")
    activation_checkpointing: bool = Field(
        False, description="with base: recompute activations in the backward pass: less memory, slower"
    )
    sft: SftSection = SftSection()
    reward: RewardModelSection = RewardModelSection()

    @override
    def problems(self) -> Iterator[str]:
        if self.base is not None and self.kind == "demo":
            yield "kind=demo is synthetic and has no base; set kind to hh or tldr, or remove base"
        if self.adapter is None and self.layers is not None:
            yield "layers says which layers get adapters, and adapter=null trains all weights; remove one of them"
        changed = sorted(self.model_fields_set - {"kind", "base", "cache", "seed"})
        if self.base is None and any(getattr(self, name) != _default(self, name) for name in changed):
            yield f"{', '.join(changed)} need a base, a pretrained model to start from; set base, or remove them"


def _default(section: Section, name: str) -> object:
    return type(section).model_fields[name].default


class EvaluationSection(Section):
    """Evaluation on held-out prompts: validation chooses the version, test is reported.

    Example:
        evaluation: {every_rounds: 2, validation_prompts: 100, test_prompts: 256}
    """

    every_rounds: int = Field(1, ge=1, description="rounds between evaluations on the validation prompts")
    validation_prompts: int = Field(200, ge=1, description="how many validation prompts are used")
    test_prompts: int = Field(400, ge=1, description="how many test prompts are used")
    examples: int = Field(
        5,
        ge=0,
        description="outputs shown side by side in examples.md; 0 keeps all texts out of report.html, too",
    )
    truth: str | None = Field(None, description="name of the scorer that knows the ground truth, if there is one")
    max_kl: float | None = Field(
        None,
        gt=0,
        description="a version further from the prior than this many nats, on validation prompts, is never the best",
    )
    choose: Literal["win-rate", "pareto"] = Field(
        "win-rate",
        description="the best version. win-rate: the highest win rate, or mean reward; pareto: the least KL of those "
        "whose win rate is not clearly lower",
    )
    patience: int | None = Field(
        None, ge=1, description="end training after so many evaluations without a better version; default: never"
    )


class TimeoutsSection(Section):
    """Time limits, in seconds; the error names the part that exceeded one.

    Example:
        timeouts: {start: 3600}
    """

    start: float = Field(900, gt=0, description="the start of an actor, including loading its model")
    load: float = Field(
        600, gt=0, description="each phase of delivering a version to a sampler: verify, fetch, load, probe"
    )
    lease: float = Field(1800, gt=0, description="one request to a sampler, or one call of a scorer")
    silence: float = Field(
        300, gt=0, description="a sampler that does not answer, or makes no progress, for this long is restarted"
    )
    outage: float = Field(
        600, gt=0, description="a scorer that gives no value at all is asked again for so long; then the run ends"
    )
    step: float = Field(1800, gt=0, description="one optimiser step, checkpoint or publication")
    grace: float = Field(
        25,
        ge=0,
        description="after SIGTERM: time for the step under way and a checkpoint (most clusters kill after 30 s); in a "
        "Ray job at most 2 s; 0: end at once",
    )


class RaySection(Section):
    """The Ray cluster. Inside a Ray job, the job's own cluster is used.

    Example:
        ray: {address: "auto"}
    """

    address: str | None = Field(None, description="address of an existing cluster; default: start one on this machine")
    num_cpus: int | None = Field(
        None,
        ge=1,
        description="CPU cores that a cluster started here offers; default: what the services need, plus the machine's",
    )
