"""The learner: optimiser steps on batches of groups, checkpoints, and new proposal versions."""

import math
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch

from common.config.recipe import LearnerSection, Recipe
from common.errors import PipelineError
from common.identity import seed_from
from common.nn.adapters import save_adapter
from common.policies import PolicyRegistry
from learner.batches import GroupBatch, group_batch
from learner.checkpoint import CheckpointDirectory
from learner.engine_protocol import Engine, MakeEngine
from learner.gradients import BatchResult, accumulate_gradient
from learner.objectives.catalogue import OBJECTIVES
from learner.objectives.values import GroupValues, ObjectiveResult
from learner.policy import Policy, new_policy
from learner.randomness import random_state, seed_all, set_random_state
from learner.training_state import TrainingState, read_training_state, settings_digest


class Trainer:
    """One rank of the learner; all ranks are called alike, and rank 0 writes.

    Step s is the s-th batch that is trained, counted from 1; step 0 is the prior.

    Attributes:
        step: the last step that was done.
    """

    def __init__(self, recipe: Recipe, run_dir: Path, make_engine: MakeEngine) -> None:
        self.step = 0
        self._recipe = recipe
        self._make_engine = make_engine
        self._checkpoints = CheckpointDirectory(run_dir / "checkpoints", recipe.learner.keep_checkpoints)
        self._registry = PolicyRegistry(run_dir / "policies")
        self._policy: Policy
        self._engine: Engine

    def start(self) -> int:
        """Load prior and adapter: a new one, or the newest checkpoint's.

        Returns:
            The checkpoint's step, 0 without one.

        Raises:
            UserError: the model cannot be loaded, or the checkpoint is damaged or made with other settings.
            PipelineError: the ranks found different checkpoints.
        """
        recipe = self._recipe
        checkpoint = self._checkpoints.newest()
        state = checkpoint and read_training_state(checkpoint.path, settings_digest(recipe))
        self._policy = new_policy(recipe)
        if state:
            self._policy.load_weights(state.weights)
        self._engine = self._make_engine(self._policy, recipe.learner)
        seed_all(seed_from("learner", recipe.seed, self._engine.rank))
        if state:
            self._resume(state)
        found = self._engine.gather(self.step)
        if len(set(found)) > 1:
            raise PipelineError(
                f"the learner's ranks found checkpoints of different steps ({found}); all must see the same "
                f"{self._checkpoints.root}."
            )
        if self._engine.rank == 0:
            self._checkpoints.remove_leftovers()
        return self.step

    def _resume(self, state: TrainingState) -> None:
        self.step = state.step
        self._engine.load_optimizer_state(state.optimizer)
        if self._engine.rank < len(state.random_states):
            set_random_state(state.random_states[self._engine.rank])

    def train_step(self, step: int, batch: pa.RecordBatch) -> dict[str, float]:
        """One optimiser step on a TRAIN_BATCH.

        A batch in which no prompt has two valid outputs has no gradient: neither weights nor optimiser
        change, but it counts as a step, and the metrics say so (`trained_prompts` 0, and no `loss`).

        Args:
            step: must be the one after the last.
            batch: the whole batch, the same on every rank.

        Returns:
            Metrics, the same on every rank but for `seconds`.

        Raises:
            PipelineError: a step out of turn, or a loss or gradient that is not finite; no weight changes.
        """
        started = time.perf_counter()
        if step != self.step + 1:
            raise PipelineError(f"the learner is at step {self.step} and was asked for step {step}.")
        learner = self._recipe.learner
        groups = group_batch(batch)
        result = accumulate_gradient(self._engine, groups, self._loss, self._policy.budget(learner.micro_batch_tokens))
        metrics = _batch_metrics(groups, result)
        metrics["learning_rate"] = learning_rate(step, learner)
        if result.objective.trained.any():
            _check_losses(step, groups, result)
            metrics["grad_norm"] = self._engine.step(metrics["learning_rate"])
            if not math.isfinite(metrics["grad_norm"]):
                raise PipelineError(
                    f"step {step}: the gradient is not finite, though the losses are; groups "
                    f"{', '.join(groups.group_ids)}."
                )
        metrics |= self._sampler_gap(groups, result.policy_logprobs)
        self.step = step
        metrics["seconds"] = time.perf_counter() - started
        return metrics

    def save(self, step: int) -> None:
        """Save a checkpoint of the present state; all ranks return when it is complete.

        Raises:
            PipelineError: `step` is not the last step.
        """
        self._check_position(step, "save")
        state = TrainingState(
            step=step,
            settings_digest=settings_digest(self._recipe),
            weights=self._policy.weights(),
            optimizer=self._engine.optimizer_state(),
            random_states=self._engine.gather(random_state()),
        )
        if self._engine.rank == 0:
            self._checkpoints.save(step, state.write)
        self._engine.gather(None)

    def publish(self, version: int, step: int) -> str:
        """Publish the present weights as a proposal version, unless the version exists already.

        Returns:
            The version's digest.

        Raises:
            PipelineError: `step` is not the last step.
        """
        self._check_position(step, "publish")
        if self._engine.rank == 0:
            self._registry.publish(version, step, partial(save_adapter, self._policy.model))
        self._engine.gather(None)
        return self._registry.get(version).digest

    def _loss(self, values: GroupValues) -> ObjectiveResult:
        settings = self._recipe.objective
        return OBJECTIVES[settings.name](values, settings)

    def _check_position(self, step: int, what: str) -> None:
        if step != self.step:
            raise PipelineError(f"the learner is at step {self.step} and was asked to {what} step {step}.")

    def _sampler_gap(self, groups: GroupBatch, policy_logprobs: torch.Tensor) -> dict[str, float]:
        """How far the sampler's log-probabilities are from the learner's, a token.

        Known without a forward pass of its own where the proposal is the policy: at the first step after a
        version was published, for that version's outputs, if they were sampled at temperature 1.
        """
        published = self._registry.newest()
        if published is None or published.step != self.step or self._recipe.sampling.temperature != 1:
            return {}
        comparable = policy_logprobs.isfinite() & (groups.lengths > 0)
        comparable &= (groups.proposal_versions == published.version)[:, None]
        if not comparable.any():
            return {}
        gap = ((policy_logprobs - groups.proposal_logprobs).abs() / groups.lengths)[comparable]
        return {"sampler_gap_max": float(gap.max()), "sampler_gap_mean": float(gap.mean())}


def learning_rate(step: int, settings: LearnerSection) -> float:
    """Constant, after a linear warm-up that reaches it at step `warmup_steps`; steps count from 1.

    A function of the step alone, so that there is no schedule whose state could be lost.
    """
    return settings.learning_rate * min(1.0, step / max(1, settings.warmup_steps))


def _batch_metrics(groups: GroupBatch, result: BatchResult) -> dict[str, float]:
    trained = result.objective.trained
    metrics = {
        "trained_prompts": float(trained.sum()),
        "skipped_prompts": float((~trained).sum()),
        "missing_outputs": float(sum(map(len, groups.completions)) - groups.valid.sum()),
        "groups_collapsed": groups.collapsed(),
        "tokens": float(groups.trained_tokens()),
    }
    if trained.any():
        metrics["loss"] = float(result.objective.loss)
    return metrics | result.objective.metrics


def _check_losses(step: int, groups: GroupBatch, result: BatchResult) -> None:
    finite = result.objective.losses.isfinite()
    if not finite.all():
        names = [groups.group_ids[index] for index in (~finite).nonzero().flatten().tolist()]
        raise PipelineError(f"step {step}: the loss is not finite for group {', '.join(names)}.")
