"""The learner: optimiser steps on batches of groups, checkpoints, and new proposal versions."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.training import AlgorithmSection, LearnerSection
from brain_align.common.errors import PipelineError
from brain_align.common.identity import seed_from
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.common.policies import PolicyRegistry, ProposalVersion
from brain_align.learner.checkpoints.checkpoint import CheckpointDirectory
from brain_align.learner.checkpoints.training_state import (
    SavedParameters,
    TrainingState,
    random_state,
    read_training_state,
    seed_all,
    set_random_state,
    settings_digest,
    write_training_state,
)
from brain_align.learner.engine_protocol import Engine, EngineType, seen_by_rank_0, write_on_rank_0
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.policy import load_policy
from brain_align.learner.publishing.publisher import Publisher
from brain_align.learner.publishing.server_process import WeightServerProcess
from brain_align.learner.step_report import StepReport
from brain_align.learner.steps.batches import group_batch
from brain_align.learner.steps.memory_plan import token_budget
from brain_align.learner.steps.metrics import gap_warning, masked_metrics, sampler_gap, step_metrics
from brain_align.learner.steps.stepper import Stepper

_LOG = logging.getLogger(__name__)


class Trainer:
    """One rank of the learner; every rank receives the same calls, and rank 0 writes files.

    Step s is the s-th batch that is trained, counted from 1; step 0 is the prior. The weight server serves what rank 0
    publishes; it is None on other ranks, and where no sampler asks for weights.

    Attributes:
        step: the last step that was done.
    """

    def __init__(
        self, recipe: Recipe, run_dir: Path, engine_type: EngineType, server: WeightServerProcess | None = None
    ) -> None:
        self.step = 0
        self._server = server
        self._recipe = recipe
        self._engine_type = engine_type
        self._checkpoints = CheckpointDirectory(run_dir / "checkpoints", recipe.learner.keep_checkpoints)
        self._registry = PolicyRegistry(run_dir / "policies")
        self._objective = make_objective(recipe.objective)
        self._notes: list[str] = []  # for the report of the next step
        self._policy: SequenceLogprobs
        self._engine: Engine
        self._stepper: Stepper
        self._publisher: Publisher

    def start(self) -> int:
        """Load the policy as it is before the first step, or from the newest checkpoint; return the step, or 0.

        Raises:
            UserError: the model cannot be loaded, or the checkpoint is damaged or was made with other settings.
            PipelineError: the ranks found different checkpoints.
        """
        recipe = self._recipe
        checkpoint = self._checkpoints.newest()
        state = checkpoint and read_training_state(checkpoint.path, settings_digest(recipe))
        with self._engine_type.loading(recipe.learner, recipe.policy.dtype):
            self._policy = load_policy(recipe)
        self._engine = self._engine_type(self._policy, recipe.learner)
        self._publisher = Publisher(self._registry, self._policy, self._engine, self._server)
        self._stepper = self._make_stepper()
        if reason := self._policy.decoder.padded_because:
            self._say(f"WARNING: rows are padded, which repeats each prompt: {reason}.")
        seed_all(seed_from("learner", recipe.seed, self._engine.rank))
        found = self._engine.gather(state.step if state else 0)
        if len(set(found)) > 1:
            raise PipelineError(
                f"the learner's ranks found checkpoints of different steps ({found}); all must see the same "
                f"{self._checkpoints.root}."
            )
        if checkpoint and state:
            self._resume(state, SavedParameters(checkpoint.path))
        if self._engine.rank == 0:
            self._checkpoints.remove_leftovers()
        return self.step

    def _make_stepper(self) -> Stepper:
        settings = self._recipe.learner
        max_tokens = settings.micro_batch_tokens or min(
            self._engine.gather(token_budget(self._policy, settings, self._engine.ranks))
        )
        return Stepper(self._policy, self._engine, self._objective, settings, max_tokens=max_tokens, note=self._say)

    def _resume(self, state: TrainingState, parameters: SavedParameters) -> None:
        self.step = state.step
        self._engine.load_parameter_states(state.updates, parameters.state_of)
        self._stepper.restore(state.stepper)
        self._objective.normaliser = state.normaliser
        if self._engine.rank < len(state.random_states):
            set_random_state(state.random_states[self._engine.rank])

    def train_step(self, step: int, batch: pa.RecordBatch) -> StepReport:
        """Take one optimiser step on a TRAIN_BATCH.

        A batch in which no prompt has outputs that the objective can use is not a step: it changes nothing, and the
        report has `trained_prompts` 0 and no `loss`. The same step can be asked for again, with other groups. A step
        whose loss or gradient is not finite counts, but changes neither weights nor optimiser, with `skipped_step` 1.

        Args:
            step: the number after the last step's.
            batch: the whole batch, the same on every rank.

        Returns:
            Metrics, the same on every rank except `seconds`, and notes for the user.

        Raises:
            PipelineError: the step is out of turn, too many steps in a row were skipped, or memory does not suffice.
        """
        started = time.perf_counter()
        if step != self.step + 1:
            raise PipelineError(f"the learner is at step {self.step} and was asked for step {step}.")
        stored = group_batch(batch, self._recipe.seed)
        treated = stored.treated(self._recipe.objective)
        groups = treated.narrowed(self._objective.used(treated.stored_values()))
        self._objective.observe(groups.stored_values())
        rate = learning_rate(step, self._recipe.learner, self._recipe.algorithm)
        result, norm = self._stepper.take(step, groups, rate)
        metrics = step_metrics(stored, groups, result, rate, norm)
        if self._recipe.objective.truncated == "mask":
            metrics |= masked_metrics(stored, treated)
        metrics |= sampler_gap(self._recipe, groups, result.policy_logprobs, self._published_at(step - 1))
        if warning := gap_warning(self._recipe, step, metrics):
            self._say(warning)
        self.step = step if metrics["trained_prompts"] else self.step
        metrics["seconds"] = time.perf_counter() - started
        notes, self._notes = self._notes, []
        return StepReport(metrics, notes)

    def skip(self, step: int) -> None:
        """Count a step that is on record, although it trains nothing.

        Raises:
            PipelineError: the step is out of turn.
        """
        self._check_position(step - 1, "go on after")
        self.step = step

    def save(self, step: int, kept_steps: Sequence[int] = ()) -> None:
        """Save a checkpoint of the present state; return on every rank when it is complete.

        Checkpoints of `kept_steps` are kept, however old they are.

        Raises:
            PipelineError: `step` is not the last step.
        """
        self._check_position(step, "save")
        if not seen_by_rank_0(self._engine, self._checkpoints.has(step)):
            state = TrainingState(
                step=step,
                updates=self._engine.updates(),
                settings_digest=settings_digest(self._recipe),
                random_states=self._engine.gather(random_state()),
                stepper=self._stepper.state(),
                normaliser=self._objective.normaliser,
            )
            write_on_rank_0(
                self._engine,
                self._engine.parameter_states(),
                lambda parameters: self._checkpoints.save(
                    step, lambda directory: write_training_state(directory, state, parameters)
                ),
            )
        if self._engine.rank == 0:
            self._checkpoints.remove_old(kept_steps)

    def publish(self, version: int, step: int) -> None:
        """Publish the present weights as a proposal version, unless the version exists already.

        Raises:
            PipelineError: `step` is not the last step.
        """
        self._check_position(step, "publish")
        self._publisher.publish(version, step)

    def _published_at(self, step: int) -> ProposalVersion | None:
        """Return the version that was published after a step, if it is the newest."""
        newest = self._registry.newest()
        return newest if newest is not None and newest.step == step else None

    def _say(self, text: str) -> None:
        _LOG.warning(text)
        self._notes.append(text)

    def _check_position(self, step: int, what: str) -> None:
        if step != self.step:
            raise PipelineError(f"the learner is at step {self.step} and was asked to {what} step {step}.")


def learning_rate(step: int, learner: LearnerSection, algorithm: AlgorithmSection) -> float:
    """Return the learning rate of a step.

    It rises linearly and reaches its full value at step `warmup_steps`. From there it stays constant, or falls linearly
    or along half a cosine to 0 at the step after the run's last. It depends on the step alone, so that no schedule's
    state can be lost.
    """
    if step < learner.warmup_steps:
        return learner.learning_rate * step / learner.warmup_steps
    if learner.schedule == "constant":
        return learner.learning_rate
    total = algorithm.rounds * algorithm.updates_per_round
    start = max(1, learner.warmup_steps)  # the step of the full value
    progress = (step - start) / max(1, total + 1 - start)
    factor = 1 - progress if learner.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return learner.learning_rate * factor
