"""TensorBoard files in the run directory."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter


class TensorBoardFiles:
    """Writes event files that `tensorboard --logdir` reads; a resumed run adds a file."""

    def __init__(self, directory: Path) -> None:
        self._writer = SummaryWriter(str(directory), filename_suffix=f".{time.time_ns()}")  # else one name per second

    def log(self, kind: str, number: int, figures: Mapping[str, float]) -> None:
        """Write figures."""
        for name, value in figures.items():
            self._writer.add_scalar(f"{kind}/{name}", value, number)

    def close(self) -> None:
        """Write everything to the files."""
        self._writer.close()
