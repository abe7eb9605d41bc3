"""The recipe: all settings of a run, with bounds and defaults.

Defaults are those of the paper if it gives them (n = 32, T = 1, goodness temperature 1); the others are ours. In paths,
`{world}` stands for the directory that `prepare` built.
"""

from collections.abc import Iterable, Iterator

from pydantic import Field
from typing_extensions import override

from brain_align.common.config.inputs import DataSection, PolicySection
from brain_align.common.config.objective_sections import BrainSection, RsoSection
from brain_align.common.config.objectives import ObjectiveSection
from brain_align.common.config.run import (
    EvaluationSection,
    PrepareSection,
    RaySection,
    RunSection,
    StoreSection,
    TimeoutsSection,
)
from brain_align.common.config.sampling import SamplerSection, SamplingSection
from brain_align.common.config.scorers import CombinationSection, ScorerPool, ScorerSection
from brain_align.common.config.section import Name, Section
from brain_align.common.config.tracking import TrackingSection
from brain_align.common.config.training import AlgorithmSection, LearnerSection, LogprobsSection, PriorSection
from brain_align.common.schemas import HUMAN, PRIOR, PROPOSAL


class Recipe(Section):
    """A complete run.

    Example:
        name: mine
        seed: 1
    """

    name: Name = Field(description="name of the run, in `runs/{name}` and in reports")
    seed: int = Field(0, ge=0, description="seed of all random draws")
    run: RunSection = RunSection()
    store: StoreSection = StoreSection()
    prepare: PrepareSection | None = None
    data: DataSection
    policy: PolicySection
    sampling: SamplingSection = SamplingSection()
    sampler: SamplerSection = SamplerSection()
    scorers: dict[Name, ScorerSection] = Field(min_length=1)
    rewards: dict[Name, CombinationSection] = Field({})
    prior: PriorSection = PriorSection()
    logprobs: LogprobsSection = LogprobsSection()
    objective: ObjectiveSection = BrainSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    learner: LearnerSection = LearnerSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()
    timeouts: TimeoutsSection = TimeoutsSection()
    ray: RaySection = RaySection()

    def logprob_scorers(self) -> list[str]:
        """Return the names of the scorers that compute log-probabilities, on the prior's replicas."""
        return [PRIOR, PROPOSAL] if self.logprobs.proposal == "recomputed" else [PRIOR]

    def scorer(self, name: str) -> ScorerPool | PriorSection:
        """Return the section of a scorer, `prior` and `proposal` included."""
        return self.prior if name in self.logprob_scorers() else self.scorers[name]

    def groups_per_call(self, name: str) -> int:
        """Return the most groups per call of a scorer: those of a request, or fewer, for which there is time."""
        scorer, most = self.scorer(name), self.sampler.lease_prompts
        seconds = scorer.seconds_per_group if isinstance(scorer, ScorerPool) else None
        return most if seconds is None else min(most, int(_TIME_FOR_FUNCTIONS * self.timeouts.lease / seconds))

    def may_recover(self, name: str) -> bool:
        """Return whether a scorer may give values later where it gave null before."""
        return name in self.scorers and self.scorers[name].NULLS_MAY_RECOVER

    @property
    def window(self) -> int:
        """The most tokens that prompt and output may have together, which samplers and models are prepared for."""
        return max(_PROBE, self.data.max_prompt_tokens + self.sampling.max_tokens)

    @property
    def reward(self) -> str | CombinationSection:
        """Return the reward that `objective.reward` names: a scorer, or a combination of several."""
        return self.rewards.get(self.objective.reward, self.objective.reward)

    def reward_scorers(self) -> list[str]:
        """Return the scorers whose values make the objective's reward; none if human choices do."""
        if self.objective.reward == HUMAN:
            return []
        return [self.reward] if isinstance(self.reward, str) else list(self.reward.weights)

    @property
    def has_fixed_proposal(self) -> bool:
        """Every round is sampled from version 0, the prior."""
        if self.algorithm.proposal is not None:
            return self.algorithm.proposal == "fixed"
        return self.objective.ORIGIN.is_fixed

    @override
    def problems(self) -> Iterator[str]:
        yield from self._problems_of_scorers()
        yield from self._problems_of_rewards()
        yield from self._problems_of_the_objective()
        yield from self._problems_of_human_pairs()
        yield from self._problems_of_full_training()
        yield from self._problems_of_the_proposal()
        yield from self._problems_of_batches()

    def _problems_of_scorers(self) -> Iterator[str]:
        for name, meaning in _TAKEN.items():
            if name in self.scorers:
                yield f"scorers.{name}: `{name}` is the name of {meaning}; choose another"
        for name, scorer in self.scorers.items():
            if scorer.seconds_per_group and not self.groups_per_call(name):
                yield (
                    f"scorers.{name}.timeout={scorer.seconds_per_group / 2:g} is for a group's outputs and again for "
                    f"its gold output, and a call of a scorer may take timeouts.lease={self.timeouts.lease:g} s; set "
                    f"the timeout to {_TIME_FOR_FUNCTIONS * self.timeouts.lease / 2:g} at most, or raise timeouts.lease"
                )
        if self.evaluation.truth is not None:
            yield from self._unless_scorers([self.evaluation.truth], "evaluation.truth", self.scorers)

    def _problems_of_rewards(self) -> Iterator[str]:
        for name in sorted(self.rewards.keys() & self.scorers.keys()):
            yield f"rewards.{name} has the name of a scorer; choose another"
        for name, combination in self.rewards.items():
            yield from self._unless_scorers(combination.weights, f"rewards.{name}.weights", self.scorers)
        reward = self.objective.reward
        if reward not in self.rewards and reward != HUMAN:
            yield from self._unless_scorers([reward], "objective.reward", [*self.scorers, *self.rewards])
        for name in self.reward_scorers():
            if name in self.scorers and self.scorers[name].use != "training":
                yield f"scorers.{name}.use must be `training`: the objective's reward needs it"

    def _unless_scorers(self, names: Iterable[str], where: str, choice: Iterable[str]) -> Iterator[str]:
        available = list(choice)
        is_one = len(available) == 1 and not where.endswith(".weights")
        remedy = f"set {where}: {available[0]}" if is_one else "name one of these"
        for name in names:
            if name not in self.scorers:
                yield f"{where}={name!r} does not name a scorer (available: {', '.join(available)}); {remedy}"

    def _problems_of_the_objective(self) -> Iterator[str]:
        objective = self.objective
        if objective.ORIGIN.is_prior and self.algorithm.proposal == "updated":
            yield (
                f"objective.name={objective.name} is defined on outputs of the prior, and algorithm.proposal=updated "
                f"samples from newer versions; remove that setting, or choose another objective"
            )
        if not self.sampler.replicas:
            return
        if objective.needs_gold and self.data.gold_column is None:
            yield (
                f"objective.name={objective.name} with sft_on=gold trains on gold texts, and data.gold_column is not "
                f"set; set it, or set objective.sft_on=best (chosen for dpo+nll)"
            )
        if isinstance(objective, RsoSection) and (refusal := objective.refusal(self.sampling.n)):
            yield refusal

    def _problems_of_human_pairs(self) -> Iterator[str]:
        if self.objective.reward != HUMAN:
            return
        if refusal := self.objective.refusal_of_texts(f"human preference pairs (objective.reward={HUMAN})"):
            yield refusal
        elif self.sampler.replicas:
            yield (
                f"objective.name={self.objective.name} with reward={HUMAN} trains on human preference pairs, which "
                f"cannot be sampled; import a file with the columns prompt, chosen and rejected (brain store "
                f"import-pairs), and set sampler.replicas=0 and store.uri to the result; or choose dpo-sft, whose "
                f"pairs the reward ranks"
            )

    def _problems_of_full_training(self) -> Iterator[str]:
        policy, stage = self.policy, self.learner.zero_stage
        if policy.quantization is not None and stage == 3:
            yield (
                f"policy.quantization={policy.quantization} and learner.zero_stage=3 do not go together: DeepSpeed "
                f"cannot partition 4-bit weights; set zero_stage=2"
            )
        in_16_bits = policy.method == "full" and policy.dtype == "bfloat16"
        if in_16_bits and stage == 0:
            yield (
                "policy.method=full in bfloat16 needs a float32 copy of the weights, which ZeRO keeps; set "
                "learner.zero_stage=1 or more (one rank is enough), or policy.dtype=float32"
            )
        elif in_16_bits and self.learner.offload_optimizer and stage < 3:
            yield (
                "learner.offload_optimizer=true with policy.method=full in bfloat16 needs learner.zero_stage=3 (one "
                "rank is enough): with it, DeepSpeed's stages 1 and 2 do not recover from a gradient that is not finite"
            )
        if self.sampler.delivery == "transfer" and policy.method != "full":
            yield (
                f"sampler.delivery=transfer sends the weights of whole models, and policy.method={policy.method} "
                f"publishes adapters, which are small and loaded from their files; remove that setting"
            )
        if self.sampler.delivery == "merged" and policy.method == "full":
            yield (
                "sampler.delivery=merged adds adapters to the model's weights, and policy.method=full publishes whole "
                "models; set sampler.delivery to auto, files or transfer"
            )

    def _problems_of_the_proposal(self) -> Iterator[str]:
        if self.logprobs.proposal == "recomputed" and not self.sampling.tokens_are_the_policy_s:
            others = [*self.sampling.truncating(), *(["temperature"] if self.sampling.temperature != 1 else [])]
            yield (
                f"logprobs.proposal=recomputed computes the model's own distribution, but sampling."
                f"{', sampling.'.join(name for name in others if name != 'stop')} samples from another; remove it, or "
                f"set logprobs.proposal=sampler"
            )

    def _problems_of_batches(self) -> Iterator[str]:
        if self.sampler.replicas == 0 and self.store.uri is None:
            yield (
                "sampler.replicas=0 samples nothing, so that training needs the groups of an existing store; set "
                "store.uri to it, or to the directory of its run"
            )
        if self.store.replay and self.sampler.replicas:
            yield "store.replay trains the recorded steps of a store; set sampler.replicas=0"
        algorithm = self.algorithm
        if algorithm.batch_prompts > algorithm.prompts_per_round:
            yield (
                f"algorithm.batch_prompts={algorithm.batch_prompts} is more than "
                f"algorithm.prompts_per_round={algorithm.prompts_per_round}; a step cannot use a group twice"
            )


_TAKEN = {
    PRIOR: "the prior's log-probabilities",
    PROPOSAL: "the proposal's log-probabilities",
    HUMAN: "human choices between two outputs",
}

_PROBE = 32
"""Tokens that samplers must have room for: more than the text has on which they prove that they hold a version."""

_TIME_FOR_FUNCTIONS = 0.9
"""Share of a call's time limit; the rest is for the transfer of groups and scores."""
