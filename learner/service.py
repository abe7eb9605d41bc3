"""The learner as actors, one per rank."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from brain_align.common.config.recipe import Recipe
from brain_align.common.logs import redirect_output
from brain_align.common.system.run_place import check_place
from brain_align.learner.publishing.server_process import WeightServerProcess
from brain_align.learner.step_report import StepReport

if TYPE_CHECKING:
    from brain_align.learner.trainer import Trainer


class LearnerActor:
    """One rank. `address` (of rank 0) and `start` (of all ranks) come first; then all ranks get the same calls."""

    def __init__(self, recipe: dict[str, Any], run_dir: str, rank: int, log_path: str) -> None:
        redirect_output(Path(log_path))
        self._recipe = Recipe.model_validate(recipe)
        self._run_dir = Path(run_dir)
        self._rank = rank
        self._trainer: Trainer

    def address(self) -> tuple[str, int]:
        """Return where the other ranks can reach rank 0: this machine, and a port that is free now.

        Raises:
            NotSharedError: this node does not see the run directory.
        """
        check_place()
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def start(self, master_addr: str, master_port: int) -> int:
        """Join the other ranks and load the model; returns the step that the run resumes from (0: none).

        Raises:
            NotSharedError: this node does not see the run directory.
        """
        check_place()
        os.environ |= {
            "MASTER_ADDR": master_addr,
            "MASTER_PORT": str(master_port),
            "RANK": str(self._rank),
            "WORLD_SIZE": str(self._recipe.learner.ranks),
            "LOCAL_RANK": "0",  # Ray shows an actor only its own GPUs
        }
        # Imports that take seconds, which only this process needs, and whose output belongs in its log.
        import torch

        from brain_align.learner.engine import DeepSpeedEngine, join_ranks
        from brain_align.learner.trainer import Trainer

        torch.set_num_threads(self._recipe.learner.threads)
        join_ranks(ray.util.get_node_ip_address())
        self._trainer = Trainer(self._recipe, self._run_dir, DeepSpeedEngine, self._weight_server(master_addr))
        return self._trainer.start()

    def _weight_server(self, host: str) -> WeightServerProcess | None:
        sampler = self._recipe.sampler
        nobody_asks = sampler.replicas == 0 and sampler.autoscale is None
        if self._rank or sampler.delivery != "transfer" or nobody_asks:
            return None
        return WeightServerProcess(self._run_dir / "policies", host, self._recipe.timeouts.load)

    def train_step(self, step: int, batch: pa.RecordBatch) -> StepReport:
        """Train a step, see `Trainer.train_step`."""
        return self._trainer.train_step(step, batch)

    def skip(self, step: int) -> None:
        """Count a step that trains nothing, see `Trainer.skip`."""
        self._trainer.skip(step)

    def save(self, step: int, kept_steps: Sequence[int]) -> None:
        """Save a checkpoint, see `Trainer.save`."""
        self._trainer.save(step, kept_steps)

    def publish(self, version: int, step: int) -> None:
        """Publish a version, see `Trainer.publish`."""
        self._trainer.publish(version, step)
