"""MLflow (`tracking.mlflow`)."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from brain_align.common.config.tracking import MlflowSection
from brain_align.deploy.run.trackers.tracker_protocol import TrackedRun

_TAG = "brain_align.run"
_LONGEST_VALUE = 500  # characters of a parameter; servers refuse more
_PARAMETERS = 100  # per request, at most
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # for minutes otherwise


class MlflowRun:
    """One run at a tracking server or in a database; a resumed run finds it by its tag, and continues it."""

    def __init__(self, section: MlflowSection, run: TrackedRun) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        for library in ("mlflow", "alembic"):  # the terminal is the run's
            logging.getLogger(library).setLevel(logging.WARNING)
        self._metric = Metric
        self._client: Any = MlflowClient(section.uri)
        found = self._client.get_experiment_by_name(section.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(section.experiment)
        earlier = self._client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{run.key}'")
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(experiment, run_name=run.name, tags={_TAG: run.key}).info.run_id
        parameters = [Param(name, value[:_LONGEST_VALUE]) for name, value in _flat(run.settings)]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._id, params=parameters[start : start + _PARAMETERS])

    def log(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
        """Send figures."""
        now = int(time.time() * 1000)
        named = [self._metric(f"{kind}/{name}", float(value), now, number) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=named)

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._id)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield settings by dotted name; those that are not set are left out."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value)
