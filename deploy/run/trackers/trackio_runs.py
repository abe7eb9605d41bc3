"""Trackio (`tracking.trackio`)."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

from brain_align.common.config.tracking import TrackioSection
from brain_align.deploy.run.trackers.tracker_protocol import TrackedRun, axis

_LOG = logging.getLogger(__name__)


class TrackioRun:
    """One run in Trackio's database on this machine, or in a Space; a resumed run continues it."""

    def __init__(self, section: TrackioSection, run: TrackedRun) -> None:
        import trackio

        for name, module in list(sys.modules.items()):
            if name == "trackio" or name.startswith("trackio."):
                module.__dict__["print"] = _to_log  # it has no quiet mode, and the terminal is the run's
        self._run: Any = trackio.init(
            project=section.project,
            name=f"{run.name}-{run.key[:6]}",
            space_id=section.space,
            config=run.settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
        """Hand figures to Trackio's own thread."""
        named = {f"{kind}/{name}": value for name, value in figures.items()}
        self._run.log({**named, f"{kind}/{axis(kind)}": number}, step=number)

    def close(self) -> None:
        """Write the rest."""
        self._run.finish()


def _to_log(*texts: object, **_: object) -> None:
    _LOG.info("trackio: %s", " ".join(map(str, texts)))
