"""One optimiser step on a batch of groups, and the remedies when it cannot be taken as it is.

- The first trained group is computed on packed and on padded rows; where they disagree, the run uses padded rows.
- Out of GPU memory: the token budget is halved and the step repeated from its start, with the same gradient. Where
  DeepSpeed cannot discard half a gradient (several ranks, ZeRO-2 and -3), the services restart with half the budget.
- A loss or gradient that is not finite: the step is skipped and counted; too many in a row end the run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from brain_align.common.config.training import LearnerSection
from brain_align.common.errors import LearnerOutOfMemoryError, PipelineError
from brain_align.common.nn.logprobs import SequenceLogprobs
from brain_align.learner.engine_protocol import Engine
from brain_align.learner.objectives.objective import Objective
from brain_align.learner.steps.batches import GroupBatch
from brain_align.learner.steps.gradients import BatchResult, accumulate_gradient

_SMALLEST_BUDGET = 16
"""Tokens; if even these do not fit, the budget is not to blame."""

_LARGEST_EXPONENT = math.log(torch.finfo(torch.float32).max)


@dataclass(frozen=True)
class StepperState:
    """The state that the stepper must have after a resume to take the same steps."""

    skipped: list[str]  # the steps skipped in a row up to now, each with its reason
    halved_to: int | None  # the token budget that fits into memory; None where the budget was never too large
    padded_because: str | None  # as in `PrefixDecoder`
    checked: bool  # whether packed and padded rows have been compared on a first group


class Stepper:
    """Takes steps; the same on every rank.

    Attributes:
        max_tokens: the present token budget of a forward pass.
        skipped: the steps skipped in a row up to now, each with its reason.
    """

    def __init__(
        self,
        policy: SequenceLogprobs,
        engine: Engine,
        objective: Objective,
        settings: LearnerSection,
        *,
        max_tokens: int,
        note: Callable[[str], None],
    ) -> None:
        self.max_tokens = max_tokens
        self.skipped: list[str] = []
        self._policy = policy
        self._engine = engine
        self._objective = objective
        self._settings = settings
        self._note = note
        self._checked = False
        self._halved_to: int | None = None

    def state(self) -> StepperState:
        """Return the state to keep in a checkpoint."""
        return StepperState(self.skipped, self._halved_to, self._policy.decoder.padded_because, self._checked)

    def restore(self, state: StepperState) -> None:
        """Continue after the step whose checkpoint held `state`."""
        self.skipped, self._halved_to = state.skipped, state.halved_to
        if state.halved_to is not None:
            self.max_tokens = min(self.max_tokens, state.halved_to)
        if state.padded_because is not None:
            self._policy.decoder.padded_because = state.padded_because
        self._checked = state.checked

    def take(self, step: int, groups: GroupBatch, learning_rate: float) -> tuple[BatchResult, float | None]:
        """Compute the gradient and update the weights.

        Returns:
            What was computed, and the gradient's norm before clipping; None where the weights were left as they are.

        Raises:
            PipelineError: too many steps in a row were not finite, or memory does not suffice.
            LearnerOutOfMemoryError: all ranks must restart with a smaller token budget.
        """
        if not self._checked:
            self._check_packed(groups)
        result = self._accumulate(step, groups)
        if not result.objective.trained.any():
            return result, None
        norm = self._update(groups, result, learning_rate)
        if isinstance(norm, str):
            self._skip(f"step {step}: {norm}")
            return result, None
        self.skipped = []
        return result, norm

    def _check_packed(self, groups: GroupBatch) -> None:
        rows = groups.trained.nonzero().flatten().tolist()
        if not rows:
            return
        self._checked = True
        outputs = [groups.text(rows[0], column) for column in groups.computed[rows[0]].nonzero().flatten().tolist()]
        check = self._policy.check_packed((groups.prompts[rows[0]], outputs), self.max_tokens)
        if check is not None and not all(self._engine.gather(check.passed)):
            self._policy.decoder.padded_because = check.because
            self._note(
                f"WARNING: this model's packed rows are not used, and training is several times slower: in group "
                f"{groups.group_ids[rows[0]]}, {self._policy.decoder.padded_because}."
            )

    def _accumulate(self, step: int, groups: GroupBatch) -> BatchResult:
        while True:
            try:
                return accumulate_gradient(
                    self._engine, groups, self._objective, self._policy.decoder.budget(self.max_tokens)
                )
            except torch.OutOfMemoryError as error:
                reason = str(error).split(". ")[0]
            # Outside of the handler, whose traceback would keep the pass's tensors.
            self._halve_budget(step, reason)

    def _halve_budget(self, step: int, reason: str) -> None:
        smaller = self.max_tokens // 2
        what = f"step {step}: out of memory with {self.max_tokens} tokens per forward pass"
        if smaller < _SMALLEST_BUDGET:
            raise PipelineError(f"{what} ({reason}); set learner.activation_checkpointing=true, or use more memory")
        if not self._engine.can_discard:
            # Other ranks wait in the middle of a reduction for a gradient that will not come: all must restart.
            raise LearnerOutOfMemoryError(f"{what} ({reason})", smaller)
        self._engine.discard_gradient()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._note(f"{what}; the step is repeated with {smaller} ({reason}).")
        self.max_tokens = self._halved_to = smaller

    def _update(self, groups: GroupBatch, result: BatchResult, learning_rate: float) -> float | str:
        """Update the weights; return the gradient's norm, or a sentence where loss or gradient is not finite."""
        norm = self._engine.step(learning_rate)
        if math.isfinite(norm):
            return norm
        finite = result.objective.losses.isfinite()
        if finite.all():
            return f"the gradient is not finite, though the losses are; groups {', '.join(groups.group_ids)}"
        names = [groups.group_ids[index] for index in (~finite).nonzero().flatten().tolist()]
        return f"the loss is not finite for group {', '.join(names)}{_overflow(groups, result, ~finite)}"

    def _skip(self, reason: str) -> None:
        self.skipped.append(reason)
        if len(self.skipped) > self._settings.max_skipped_in_a_row:
            most = self._settings.max_skipped_in_a_row
            raise PipelineError(
                f"{len(self.skipped)} steps in a row could not be taken, and learner.max_skipped_in_a_row is {most}. "
                f"{'; '.join(self.skipped)}. Look at these groups' rewards and log-probabilities"
            )
        self._note(f"{reason}; the step is skipped ({len(self.skipped)} in a row).")


def _overflow(groups: GroupBatch, result: BatchResult, lost: torch.Tensor) -> str:
    """Return a remark where a ratio q_θ/q' of these groups, which gdc++ does not normalise, exceeds float32's range."""
    ratios = (result.policy_logprobs - groups.proposal_logprobs)[lost]
    largest = ratios[ratios.isfinite()].amax().item() if ratios.isfinite().any() else 0.0
    if largest < _LARGEST_EXPONENT:
        return ""
    return f" (log q - log q' is up to {largest:.0f} nats, and float32 holds exponentials of {_LARGEST_EXPONENT:.0f})"
