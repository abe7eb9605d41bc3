"""The recipe: everything that a run is told, with bounds and defaults.

Defaults are those of the paper where it gives them (n = 32, T = 1, goodness temperature 1); the paper's text lost the
others, and the rest are ours. Paths are strings in which `{world}` stands for the directory that `prepare` made.
"""

from collections.abc import Iterable
from typing import Self

from pydantic import Field, model_validator

from brain_align.common.config.data import DataSection
from brain_align.common.config.objective_sections import BrainSection, RsoSection
from brain_align.common.config.objectives import ObjectiveSection
from brain_align.common.config.policy import PolicySection
from brain_align.common.config.run import (
    EvaluationSection,
    PrepareSection,
    RaySection,
    RunSection,
    StoreSection,
    TimeoutsSection,
)
from brain_align.common.config.sampling import SamplerSection, SamplingSection
from brain_align.common.config.scorers import CombinationSection, FunctionSection, ScorerPool, ScorerSection
from brain_align.common.config.section import Name, Section
from brain_align.common.config.training import AlgorithmSection, LearnerSection, LogprobsSection, PriorSection
from brain_align.common.schemas import HUMAN, PRIOR, PROPOSAL


class Recipe(Section):
    """A complete run."""

    name: Name
    seed: int = Field(0, ge=0)
    run: RunSection = RunSection()
    store: StoreSection = StoreSection()
    prepare: PrepareSection | None = None
    data: DataSection
    policy: PolicySection
    sampling: SamplingSection = SamplingSection()
    sampler: SamplerSection = SamplerSection()
    scorers: dict[Name, ScorerSection] = Field(min_length=1)
    rewards: dict[Name, CombinationSection] = Field({}, description="rewards that are made of several scorers' values")
    prior: PriorSection = PriorSection()
    logprobs: LogprobsSection = LogprobsSection()
    objective: ObjectiveSection = BrainSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    learner: LearnerSection = LearnerSection()
    evaluation: EvaluationSection = EvaluationSection()
    timeouts: TimeoutsSection = TimeoutsSection()
    ray: RaySection = RaySection()

    def logprob_scorers(self) -> list[str]:
        """The names of the scorers that compute log-probabilities, on the prior's replicas."""
        return [PRIOR, PROPOSAL] if self.logprobs.proposal == "recomputed" else [PRIOR]

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        for name, meaning in _TAKEN.items():
            if name in self.scorers:
                raise ValueError(f"scorers.{name}: `{name}` is the name of {meaning}; choose another")
        truth = self.evaluation.truth
        if truth is not None:
            self._require_scorers([truth], "evaluation.truth", self.scorers)
        return self

    def scorer(self, name: str) -> ScorerPool | PriorSection:
        """The section of a scorer; log-probabilities of prior and proposals are some like the others."""
        return self.prior if name in self.logprob_scorers() else self.scorers[name]

    def groups_a_call(self, name: str) -> int:
        """How many groups a call of a scorer has at most: those of a lease, or fewer, for which there is time."""
        scorer, leased = self.scorer(name), self.sampler.lease_prompts
        if not isinstance(scorer, FunctionSection):
            return leased
        return min(leased, int(_TIME_FOR_FUNCTIONS * self.timeouts.lease / scorer.seconds_a_group))

    @model_validator(mode="after")
    def _functions_have_time(self) -> Self:
        for name, scorer in self.scorers.items():
            if isinstance(scorer, FunctionSection) and not self.groups_a_call(name):
                raise ValueError(
                    f"scorers.{name}.timeout={scorer.timeout:g} is for a group's outputs and again for its gold output,"
                    f" and a call of a scorer may take timeouts.lease={self.timeouts.lease:g} s; set the timeout to "
                    f"{_TIME_FOR_FUNCTIONS * self.timeouts.lease / 2:g} at most, or raise timeouts.lease"
                )
        return self

    @property
    def reward(self) -> str | CombinationSection:
        """What `objective.reward` names: a scorer, or a combination of several."""
        return self.rewards.get(self.objective.reward, self.objective.reward)

    @model_validator(mode="after")
    def _rewards_are_made_of_scorers(self) -> Self:
        both = sorted(self.rewards.keys() & self.scorers.keys())
        if both:
            raise ValueError(f"rewards.{both[0]} has the name of a scorer; choose another")
        for name, combination in self.rewards.items():
            self._require_scorers(combination.weights, f"rewards.{name}.weights", self.scorers)
        reward = self.objective.reward
        if reward not in self.rewards and reward != HUMAN:
            self._require_scorers([reward], "objective.reward", [*self.scorers, *self.rewards])
        for name in self.reward_scorers():
            if self.scorers[name].use != "training":
                raise ValueError(f"scorers.{name}.use must be `training`: the objective's reward needs it")
        return self

    def reward_scorers(self) -> list[str]:
        """The scorers whose values make the objective's reward; none where people's choices do."""
        if self.objective.reward == HUMAN:
            return []
        return [self.reward] if isinstance(self.reward, str) else list(self.reward.weights)

    @property
    def has_fixed_proposal(self) -> bool:
        """Whether every round is sampled from version 0, the prior."""
        if self.algorithm.proposal is not None:
            return self.algorithm.proposal == "fixed"
        return self.objective.ORIGIN.is_fixed

    @model_validator(mode="after")
    def _the_objective_has_what_it_needs(self) -> Self:
        name = self.objective.name
        if self.objective.ORIGIN.is_prior and self.algorithm.proposal == "updated":
            raise ValueError(
                f"objective.name={name} is defined on outputs of the prior, and algorithm.proposal=updated samples "
                f"from newer versions; remove that setting, or choose another objective"
            )
        if self.objective.needs_gold and self.sampler.replicas and self.data.gold_column is None:
            raise ValueError(
                f"objective.name={name} with sft_on=gold trains on gold texts, and data.gold_column names no column of "
                f"the prompt files; name it, or set objective.sft_on=best (chosen for dpo+nll)"
            )
        refused = self.objective.refusal_of_texts(f"pairs that people chose between (objective.reward={HUMAN})")
        if self.objective.reward == HUMAN and refused is not None:
            raise ValueError(refused)
        if self.objective.reward == HUMAN and self.sampler.replicas:
            raise ValueError(
                f"objective.name={name} with reward={HUMAN} trains on pairs that people chose between, which nobody "
                f"can sample; import a file with the columns prompt, chosen and rejected (brain store import-pairs), "
                f"and set sampler.replicas=0 and store.uri to the result; or choose dpo-sft, whose pairs the reward "
                f"ranks"
            )
        if isinstance(self.objective, RsoSection) and self.sampler.replicas:
            refusal = self.objective.refusal(self.sampling.n)
            if refusal is not None:
                raise ValueError(refusal)
        return self

    def _require_scorers(self, names: Iterable[str], where: str, choice: Iterable[str]) -> None:
        for name in names:
            if name not in self.scorers:
                raise ValueError(f"{where}={name!r} is no scorer of this recipe; there are {', '.join(choice)}")

    @model_validator(mode="after")
    def _the_learner_can_hold_the_policy(self) -> Self:
        policy, stage = self.policy, self.learner.zero_stage
        if policy.quantization is not None and stage == 3:
            raise ValueError(
                f"policy.quantization={policy.quantization} and learner.zero_stage=3 do not go together: DeepSpeed "
                f"cannot partition 4-bit weights; set zero_stage=2"
            )
        if policy.method == "full" and policy.dtype == "bfloat16" and stage == 0:
            raise ValueError(
                "policy.method=full in bfloat16 needs a float32 copy of the weights, which ZeRO keeps: set "
                "learner.zero_stage=1 or more (one rank is enough), or policy.dtype=float32"
            )
        if policy.method == "full" and policy.dtype == "bfloat16" and self.learner.offload_optimizer and stage < 3:
            raise ValueError(
                "learner.offload_optimizer=true with policy.method=full in bfloat16 needs learner.zero_stage=3 (one "
                "rank is enough): DeepSpeed's stages 1 and 2 do not recover there from a gradient that is not finite"
            )
        return self

    @model_validator(mode="after")
    def _sends_whole_models(self) -> Self:
        if self.sampler.delivery == "transfer" and self.policy.method != "full":
            raise ValueError(
                f"sampler.delivery=transfer sends the weights of whole models, and policy.method={self.policy.method} "
                f"publishes adapters, which are small and swapped in from their files; set sampler.delivery=files"
            )
        return self

    @model_validator(mode="after")
    def _recomputes_what_was_sampled_from(self) -> Self:
        if self.logprobs.proposal == "recomputed" and not self.sampling.tokens_are_the_policy_s:
            others = [*self.sampling.truncating(), *(["temperature"] if self.sampling.temperature != 1 else [])]
            raise ValueError(
                f"logprobs.proposal=recomputed computes the model's own distribution, but sampling."
                f"{', sampling.'.join(name for name in others if name != 'stop')} samples from another; remove it, or "
                f"set logprobs.proposal=sampler"
            )
        return self

    @model_validator(mode="after")
    def _has_groups_to_train_on(self) -> Self:
        if self.sampler.replicas == 0 and self.store.uri is None:
            raise ValueError(
                "sampler.replicas=0 samples nothing, so that training needs the groups of an existing store; set "
                "store.uri to it, or to the directory of its run"
            )
        if self.store.replay and self.sampler.replicas:
            raise ValueError("store.replay trains what a store records; set sampler.replicas=0")
        return self

    @model_validator(mode="after")
    def _one_round_fills_a_batch(self) -> Self:
        algorithm = self.algorithm
        if algorithm.batch_prompts > algorithm.prompts_per_round:
            raise ValueError(
                f"algorithm.batch_prompts={algorithm.batch_prompts} is more than "
                f"algorithm.prompts_per_round={algorithm.prompts_per_round}; a step cannot use a group twice"
            )
        return self


_TAKEN = {
    PRIOR: "the prior's log-probabilities",
    PROPOSAL: "the proposal's log-probabilities",
    HUMAN: "people's choices between two outputs",
}

_TIME_FOR_FUNCTIONS = 0.9
"""Of a call's: what is left is for the way there and back."""
