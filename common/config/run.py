"""Around the algorithm: where a run lives, what it builds first, how it is judged, and how long it waits."""

from typing import Literal

from pydantic import Field

from brain_align.common.config.section import Section


class RunSection(Section):
    """Where a run lives."""

    dir: str = Field("runs/{name}", description="the run directory; running again on it resumes")


class StoreSection(Section):
    """Where the sample store lives; or, for a run without samplers, the store that it trains from."""

    uri: str | None = Field(
        None,
        description="directory, or URI of a file system that pyarrow knows (s3://…); default: <run.dir>/store. With "
        "sampler.replicas=0: the store to train from, or the directory of its run, which is only read",
    )
    replay: bool = Field(False, description="train the steps that store.uri records again, in their order")


class PrepareSection(Section):
    """A world to build first, where the models and data are not given: see deploy/worlds."""

    kind: Literal["demo", "hh", "tldr"] = Field(description="which world to build")
    cache: str = Field("build/worlds", description="directory that keeps built worlds")
    seed: int = Field(0, ge=0)


class EvaluationSection(Section):
    """Held-back prompts: validation chooses the version, test is reported."""

    every_rounds: int = Field(1, ge=1)
    validation_prompts: int = Field(200, ge=1)
    test_prompts: int = Field(400, ge=1)
    examples: int = Field(5, ge=0, description="outputs shown side by side at the end")
    truth: str | None = Field(None, description="the scorer that knows the ground truth, where there is one")


class TimeoutsSection(Section):
    """How long anything is waited for, in seconds; the error names who was waited for."""

    start: float = Field(900, gt=0, description="an actor's start, model loading included")
    load: float = Field(
        600, gt=0, description="each phase of bringing a version to a sampler: verify, fetch, load, probe"
    )
    lease: float = Field(1800, gt=0, description="one lease of sampling, or one call of a scorer")
    silence: float = Field(
        300, gt=0, description="a sampler that does not answer, or makes no progress, is taken for hung and restarted"
    )
    step: float = Field(1800, gt=0, description="one optimiser step, checkpoint or publication")


class RaySection(Section):
    """The Ray cluster. Inside a Ray job, that job's own cluster is used."""

    address: str | None = Field(None, description="an existing cluster; default: start one on this machine")
    num_cpus: int | None = Field(None, ge=1, description="cores that a cluster of our own offers to actors")
