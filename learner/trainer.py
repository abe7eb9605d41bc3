"""The learner: optimiser steps on batches of groups, checkpoints, and new proposal versions."""

import logging
import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import PipelineError
from brain_align.common.identity import seed_from
from brain_align.common.policies import PolicyRegistry
from brain_align.learner.checkpoints.checkpoint import CheckpointDirectory
from brain_align.learner.checkpoints.randomness import random_state, seed_all, set_random_state
from brain_align.learner.checkpoints.training_state import (
    SavedParameters,
    TrainingState,
    read_training_state,
    settings_digest,
    write_training_state,
)
from brain_align.learner.engine_protocol import Engine, EngineType
from brain_align.learner.objectives.catalogue import make_objective
from brain_align.learner.policy import Policy, load_policy
from brain_align.learner.publishing.probe import make_probe
from brain_align.learner.publishing.server_process import WeightServerProcess
from brain_align.learner.step_report import StepReport
from brain_align.learner.steps.batches import GroupBatch, group_batch
from brain_align.learner.steps.gradients import BatchResult
from brain_align.learner.steps.learning_rate import learning_rate
from brain_align.learner.steps.memory_plan import footprint, tokens_of_a_pass
from brain_align.learner.steps.stepper import Stepper

_LOG = logging.getLogger(__name__)


class Trainer:
    """One rank of the learner; all ranks are called alike, and rank 0 writes.

    Step s is the s-th batch that is trained, counted from 1; step 0 is the prior.

    Args:
        recipe: the run's.
        run_dir: its directory.
        engine_type: what trains.
        server: serves what rank 0 publishes; None on other ranks, and where nobody asks.

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
        self._policy: Policy
        self._engine: Engine
        self._stepper: Stepper

    def start(self) -> int:
        """Load the policy: as it is before the first step, or the newest checkpoint's.

        Returns:
            The checkpoint's step, 0 without one.

        Raises:
            UserError: the model cannot be loaded, or the checkpoint is damaged or made with other settings.
            PipelineError: the ranks found different checkpoints.
        """
        recipe = self._recipe
        checkpoint = self._checkpoints.newest()
        state = checkpoint and read_training_state(checkpoint.path, settings_digest(recipe))
        with self._engine_type.loading(recipe.learner, recipe.policy.dtype):
            self._policy = load_policy(recipe)
        self._engine = self._engine_type(self._policy, recipe.learner)
        self._stepper = Stepper(
            self._policy,
            self._engine,
            self._objective,
            recipe.learner,
            max_tokens=recipe.learner.micro_batch_tokens or min(self._engine.gather(self._token_budget())),
            note=self._say,
        )
        if self._policy.padded_because:
            self._say(f"WARNING: rows are padded, which repeats each prompt: {self._policy.padded_because}.")
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

    def _resume(self, state: TrainingState, parameters: SavedParameters) -> None:
        self.step = state.step
        self._engine.load_parameter_states(state.updates, parameters.state_of)
        self._stepper.take_up(state.lessons)
        self._objective.normaliser = state.normaliser
        if self._engine.rank < len(state.random_states):
            set_random_state(state.random_states[self._engine.rank])

    def train_step(self, step: int, batch: pa.RecordBatch) -> StepReport:
        """One optimiser step on a TRAIN_BATCH.

        A batch in which no prompt has two valid outputs has no gradient: neither weights nor optimiser
        change, but it counts as a step, and the metrics say so (`trained_prompts` 0, and no `loss`). So does a
        step that is skipped because its loss or gradient is not finite (`skipped_step` 1).

        Args:
            step: must be the one after the last.
            batch: the whole batch, the same on every rank.

        Returns:
            Metrics, the same on every rank but for `seconds`, and what the user should know.

        Raises:
            PipelineError: a step out of turn, too many skipped in a row, or memory that does not suffice.
        """
        started = time.perf_counter()
        if step != self.step + 1:
            raise PipelineError(f"the learner is at step {self.step} and was asked for step {step}.")
        stored = group_batch(batch, self._recipe.seed)
        groups = stored.narrowed(self._objective.used(stored.stored_values()))
        self._objective.observe(groups.stored_values())
        rate = learning_rate(step, self._recipe.learner, self._recipe.algorithm)
        result, norm = self._stepper.take(step, groups, rate)
        metrics = {**_batch_metrics(stored, groups, result), "learning_rate": rate}
        if norm is not None:
            metrics["grad_norm"] = norm
        elif result.objective.trained.any():
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)} | {"skipped_step": 1.0}
        metrics |= self._sampler_gap(groups, result.policy_logprobs)
        self.step = step
        metrics["seconds"] = time.perf_counter() - started
        notes, self._notes = self._notes, []
        return StepReport(metrics, notes)

    def save(self, step: int, kept_steps: Sequence[int] = ()) -> None:
        """Save a checkpoint of the present state; all ranks return when it is complete.

        Args:
            step: must be the last step.
            kept_steps: whose checkpoints are not deleted, however old they are.

        Raises:
            PipelineError: `step` is not the last step.
        """
        self._check_position(step, "save")
        if not self._exists(self._checkpoints.has(step)):
            digest, updates = settings_digest(self._recipe), self._engine.updates()
            state = TrainingState(
                step,
                updates,
                digest,
                self._engine.gather(random_state()),
                self._stepper.lessons(),
                self._objective.normaliser,
            )
            parameters = self._engine.parameter_states()
            if self._engine.rank == 0:
                self._checkpoints.save(step, lambda directory: write_training_state(directory, state, parameters))
            else:
                _go_through(parameters)
        if self._engine.rank == 0:
            self._checkpoints.remove_old(kept_steps)
        self._engine.gather(None)

    def publish(self, version: int, step: int) -> None:
        """Publish the present weights as a proposal version, unless the version exists already.

        Raises:
            PipelineError: `step` is not the last step.
        """
        self._check_position(step, "publish")
        if not self._exists(self._registry.is_published(version)):
            probe = make_probe(self._engine.logprobs, self._policy.config)
            weights = self._engine.weights()
            if self._engine.rank == 0:
                address = None if self._server is None else self._server.address()
                self._registry.publish(version, step, partial(self._policy.write_proposal, weights), probe, address)
            else:
                _go_through(weights)
        self._engine.gather(None)

    def _exists(self, on_this_rank: bool) -> bool:
        """Whether something exists as rank 0 sees it: all ranks must take part in making it, or none."""
        return self._engine.gather(on_this_rank)[0]

    def _say(self, text: str) -> None:
        _LOG.warning(text)
        self._notes.append(text)

    def _token_budget(self) -> int:
        learner = self._recipe.learner
        needs = footprint(
            self._policy,
            ranks=self._engine.ranks,
            zero_stage=learner.zero_stage,
            recomputes=learner.activation_checkpointing,
            offloads=learner.offload_optimizer,
        )
        return tokens_of_a_pass(needs, self._policy.device, learner.gpus)

    def _check_position(self, step: int, what: str) -> None:
        if step != self.step:
            raise PipelineError(f"the learner is at step {self.step} and was asked to {what} step {step}.")

    def _sampler_gap(self, groups: GroupBatch, policy_logprobs: torch.Tensor) -> dict[str, float]:
        """How far the sampler's log-probabilities are from the learner's, in nats a token.

        Where the proposal's were computed again, for every output. Otherwise what is known without a forward pass of
        its own: right after a version was published the policy is the proposal, for that version's outputs.
        """
        if not self._recipe.sampling.tokens_are_the_policy_s:
            return {}
        if self._recipe.logprobs.proposal == "recomputed":
            ours, comparable = groups.proposal_logprobs, groups.valid.clone()
        else:
            published = self._registry.newest()
            if published is None or published.step != self.step:
                return {}
            ours = policy_logprobs
            comparable = policy_logprobs.isfinite() & (groups.proposal_versions == published.version)[:, None]
        comparable &= groups.lengths > 0
        if not comparable.any():
            return {}
        gap = ((ours - groups.sampler_logprobs).abs() / groups.lengths)[comparable]
        self._warn_of_gap(float(gap.mean()))
        return {"sampler_gap_max": float(gap.max()), "sampler_gap_mean": float(gap.mean())}

    def _warn_of_gap(self, mean: float) -> None:
        settings = self._recipe.logprobs
        if mean > settings.gap_warning:
            remedy = "" if settings.proposal == "recomputed" else ", or set logprobs.proposal=recomputed"
            self._say(
                f"WARNING: step {self.step + 1}: sampler and learner differ by {mean:.2g} nats a token "
                f"(logprobs.gap_warning is {settings.gap_warning:g}): over a whole output that is as large as rewards "
                f"are; compare their precision and quantisation{remedy}."
            )


def _go_through(gathering: Iterable[object]) -> None:
    """Take part in what rank 0 gathers."""
    for _ in gathering:
        pass


def _batch_metrics(stored: GroupBatch, groups: GroupBatch, result: BatchResult) -> dict[str, float]:
    """Of a batch as it is stored, and as the objective uses it."""
    trained = result.objective.trained
    metrics = {
        "trained_prompts": float(trained.sum()),
        "skipped_prompts": float((~trained).sum()),
        "missing_outputs": float(sum(map(len, stored.completions)) - stored.valid.sum()),
        "groups_collapsed": groups.collapsed(),
        "tokens": float(groups.trained_tokens()),
    }
    reward = stored.mean_reward()  # of all outputs, so that it means the same whichever of them an objective uses
    if reward is not None:
        metrics["reward_mean"] = reward
    if trained.any():
        metrics["loss"] = float(result.objective.loss)
    return metrics | result.objective.metrics
