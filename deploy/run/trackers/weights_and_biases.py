"""Weights & Biases (`tracking.wandb`)."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from brain_align.common.config.tracking import WandbSection
from brain_align.common.errors import first_line
from brain_align.deploy.run.trackers.tracker_protocol import TrackedRun, axis

_ONLINE_SECONDS = 60  # until a server that does not answer is given up


def note_on_key(section: WandbSection) -> str | None:
    """Return a warning where there is no key, so that the run is recorded offline."""
    if _mode(section) != "online" or os.environ.get("WANDB_API_KEY"):
        return None
    import wandb
    from requests.utils import get_netrc_auth  # wandb brings it; `wandb login` writes that file

    if get_netrc_auth(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url):
        return None
    return (
        "WARNING: tracking.wandb has no key, so that the run is only recorded offline; set WANDB_API_KEY, or call "
        "`wandb login`. `wandb sync` sends it later."
    )


class WandbRun:
    """One run at Weights & Biases, or its offline files in the run directory; a resumed run continues it."""

    def __init__(self, section: WandbSection, run: TrackedRun, tell: Callable[[str], None]) -> None:
        mode = _mode(section)
        if mode == "online" and note_on_key(section):
            mode = "offline"
        try:
            self._run = _begun(section, run, mode)
        except Exception as error:
            if mode == "offline":
                raise
            tell(
                f"WARNING: tracking.wandb: {first_line(error).rstrip('.')}. The run is recorded offline; `wandb sync "
                f"{run.root}/wandb/offline-run-*` sends it later."
            )
            import wandb

            wandb.teardown()  # its process still holds the run's id
            self._run = _begun(section, run, "offline")
        for kind in ("step", "validation", "test"):
            self._run.define_metric(f"{kind}/*", step_metric=axis(kind))

    def log(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
        """Hand figures to wandb's own process, which sends them."""
        self._run.log({axis(kind): number, **{f"{kind}/{name}": value for name, value in figures.items()}})

    def close(self) -> None:
        """Send the rest."""
        self._run.finish()


def _begun(section: WandbSection, run: TrackedRun, mode: str) -> Any:
    """Begin the run, or continue it; offline, `wandb sync` puts the parts of a resumed run together by their id."""
    import wandb

    return wandb.init(
        project=section.project,
        entity=section.entity,
        id=run.key,
        name=run.name,
        dir=str(run.root),
        config=run.settings,
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, init_timeout=_ONLINE_SECONDS
        ),
    )


def _mode(section: WandbSection) -> str:
    return os.environ.get("WANDB_MODE") or section.mode
