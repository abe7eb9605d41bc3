"""From the ids of a step's groups to the batch that the learner trains on."""

from collections.abc import Callable, Mapping

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.data.prompts import RefusedPromptError
from brain_align.common.errors import UserError
from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.store.training_batch import of_another_run, training_batch
from brain_align.deploy.run.run_plan import RunPlan

_PRIOR_TOLERANCE = 1.0
"""Nats per output by which two evaluations of one model may differ: 100 tokens in bfloat16 with other kernels."""


class TrainingBatches:
    """Joins groups with their rewards and log-probabilities, as the recipe's objective needs them."""

    def __init__(self, recipe: Recipe, plan: RunPlan) -> None:
        self._recipe = recipe
        self._store = plan.store
        self._groups_are_its_own = plan.requests is not None
        self._encode_gold = gold_encoder(recipe)

    def batch(self, group_ids: list[str]) -> pa.RecordBatch:
        """Return the TRAIN_BATCH rows of groups, in the given order; called on the store's thread."""
        proposal = PROPOSAL if PROPOSAL in self._recipe.logprob_scorers() else None
        batch = training_batch(
            self._store,
            group_ids,
            reward=self._recipe.reward,
            prior=PRIOR,
            proposal=proposal,
            gold=self._encode_gold,
        )
        return batch if self._groups_are_its_own else of_another_run(batch)

    def check_prior(self, step: int, metrics: Mapping[str, float]) -> None:
        """Refuse another run's log p that are not this policy's: before the first update the policy is the prior."""
        apart = abs(metrics.get("kl_policy_prior", 0.0))
        if step == 1 and not self._groups_are_its_own and apart > _PRIOR_TOLERANCE:
            raise UserError(
                f"The prior log-probabilities in the store that is trained from are not those of policy.model="
                f"{self._recipe.policy.model}: before the first update they should agree, but they differ by "
                f"{apart:.1f} nats per output; set policy.model to the model that the store was scored with. Nothing "
                f"was recorded."
            )


def gold_encoder(recipe: Recipe) -> Callable[[str], list[int]] | None:
    """Return what makes a gold output's token ids from its text; None if the objective reads no gold outputs.

    The ids are those of the policy's tokenizer, ended as the chat template or, without one, the tokenizer ends texts.
    Like a sampled output, a gold output that is longer than `sampling.max_tokens` is cut off there, without an end.
    """
    if not recipe.objective.needs_gold:
        return None
    from brain_align.common.nn.prompt_encoding import policy_encoding  # transformers: only where it is needed

    encoding = policy_encoding(recipe.policy, recipe.data)

    def encode(text: str) -> list[int]:
        try:
            return encoding.completion(text)[: recipe.sampling.max_tokens]
        except RefusedPromptError as error:
            raise UserError(f"The reference output {text[:60]!r} cannot be encoded ({error}); remove it.") from None

    return encode
