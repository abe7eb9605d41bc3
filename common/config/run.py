"""The surroundings of the algorithm: where a run is stored, what it builds first, how it is judged, its time limits."""

from typing import Literal

from pydantic import Field

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


class PrepareSection(Section):
    """A toy task or benchmark to build first, for recipes without models and data of their own.

    Example:
        prepare: {kind: demo}
    """

    kind: Literal["demo", "hh", "tldr"] = Field(description="what to build; `{world}` in paths is its directory")
    cache: str = Field(
        "build/worlds",
        description="directory that keeps what was built; inside a Ray job, relative to where the run directory lies",
    )
    seed: int = Field(0, ge=0, description="seed of what is built")


class EvaluationSection(Section):
    """Evaluation on held-out prompts: validation chooses the version, test is reported.

    Example:
        evaluation: {every_rounds: 2, validation_prompts: 100, test_prompts: 256}
    """

    every_rounds: int = Field(1, ge=1, description="rounds between evaluations on the validation prompts")
    validation_prompts: int = Field(200, ge=1, description="how many validation prompts are used")
    test_prompts: int = Field(400, ge=1, description="how many test prompts are used")
    examples: int = Field(5, ge=0, description="outputs shown side by side at the end")
    truth: str | None = Field(None, description="name of the scorer that knows the ground truth, if there is one")


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
