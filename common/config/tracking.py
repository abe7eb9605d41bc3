"""Experiment trackers: where a run's metrics are sent to, besides its own metrics.jsonl."""

from typing import Literal

from pydantic import Field

from brain_align.common.config.section import Name, Section


class WandbSection(Section):
    """Weights & Biases; the key comes from the environment (`WANDB_API_KEY`) or from `wandb login`.

    Example:
        tracking: {wandb: {project: alignment, mode: offline}}
    """

    project: Name = Field("brain-align", description="project that the run is filed under")
    entity: str | None = Field(None, description="user or team that the project belongs to; default: your own")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: only files in the run directory, which `wandb sync` sends later"
    )


class TrackioSection(Section):
    """Trackio: a database on this machine that `trackio show` displays, or a Space of the Hugging Face hub.

    Example:
        tracking: {trackio: {project: alignment}}
    """

    project: Name = Field("brain-align", description="project that the run is filed under")
    space: str | None = Field(
        None, description="id of the Space that metrics are sent to, with HF_TOKEN; default: this machine alone"
    )


class MlflowSection(Section):
    """MLflow: a tracking server, or a database file.

    Example:
        tracking: {mlflow: {uri: "http://mlflow:5000", experiment: alignment}}
    """

    uri: str | None = Field(
        None, description="tracking server or database; default: MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db"
    )
    experiment: str = Field("brain-align", min_length=1, description="experiment that the run is filed under")


class TrackingSection(Section):
    """Trackers that get every metric of metrics.jsonl (docs/metrics.md); what a tracker cannot take never ends a run.

    Example:
        tracking: {tensorboard: true, wandb: {project: alignment}}
    """

    tensorboard: bool = Field(True, description="write TensorBoard files into the run directory")
    wandb: WandbSection | None = Field(None, description="Weights & Biases; default: none")
    trackio: TrackioSection | None = Field(None, description="Trackio; default: none")
    mlflow: MlflowSection | None = Field(None, description="MLflow; default: none")
