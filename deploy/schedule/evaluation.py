"""Evaluation on held-back prompts: one output per prompt, sampled and scored by the services of training."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.scorers import CombinationSection
from brain_align.common.errors import PipelineError
from brain_align.common.requests import Prompt, SampleRequest
from brain_align.common.schemas import PRIOR
from brain_align.common.statistics import win_rate
from brain_align.common.store.overlay import Store
from brain_align.common.store.rewards import stored_rewards
from brain_align.deploy.schedule.choice import Candidate, best_of, may_be_best, note_on_budget, reason_to_stop
from brain_align.deploy.schedule.quarantine import SAMPLER, Item
from brain_align.deploy.schedule.request_plan import RequestPlan

Split = Literal["validation", "test"]

Merit = tuple[float, float]
"""Win rate and mean reward on validation prompts, by which versions and learning rates are chosen."""


def merit(win_rate: float | None, mean_reward: float) -> Merit:
    """Rank by win rate; between equals, or without gold outputs, by mean reward."""
    return win_rate or 0.0, mean_reward


@dataclass(frozen=True)
class Result:
    """The results of one proposal version on one split."""

    train_rm_win_rate: float | None  # percent of prompts with r(output) > r(gold), strictly; None without gold outputs
    train_rm_win_rate_ci95: float | None  # half-width of its 95 % interval, percent
    ties: float | None  # percent of prompts with equal rewards
    # mean_reward, mean_gold_reward: under the reward that was trained on.
    mean_reward: float
    mean_gold_reward: float | None
    # truth_quality, gold_truth_quality: under the ground truth, where the recipe names one.
    truth_quality: float | None
    gold_truth_quality: float | None
    kl_to_prior: float  # estimate of KL(q || p) in nats, mean of log q(y|x) - log p(y|x) over y ~ q
    mean_tokens: float  # length of the outputs
    ended: float  # percent of outputs that finished (EOS) before the length limit
    prompts: int  # number of prompts that the figures cover
    failed: int  # number of prompts that are left out because a value could not be computed


class Evaluation:
    """Decides which versions are evaluated on which prompts, and computes the results."""

    def __init__(
        self, recipe: Recipe, store: Store, plan: RequestPlan, prompts: dict[Split, list[Prompt]], scorers: list[str]
    ) -> None:
        self.store = store
        self._recipe = recipe
        self._plan = plan
        self._prompts = prompts
        self.scorers = scorers
        self._group_ids: dict[tuple[Split, int], list[str]] = {}
        self._lacking: dict[tuple[Split, int], set[str]] = {}  # groups without all their scores
        self._of: dict[str, tuple[Split, int]] = {}  # the evaluation that a group belongs to
        self._unreported: set[tuple[Split, int]] = set()  # complete ones
        self._left_out: set[str] = set()  # groups that will never be complete
        self._last = recipe.algorithm.rounds  # version, with which the run ends
        self._candidates: dict[int, Candidate] = {}  # of complete evaluations on validation prompts
        self.stopped: str | None = None  # why training has ended early
        self._deadly: dict[tuple[str, str], int] = {}  # first version at which a split's prompt brought down samplers

    def is_due(self, version: int) -> bool:
        """Return whether a version takes part in the choice of the best: the first, the last, and some between."""
        return version % self._recipe.evaluation.every_rounds == 0 or version == self._last

    def due_versions(self) -> list[int]:
        """Return all versions among which the best is chosen."""
        return [version for version in range(self._last + 1) if self.is_due(version)]

    def group_ids(self, split: Split, version: int) -> list[str]:
        """Return the groups that evaluate a version on a split."""
        if (split, version) not in self._group_ids:
            groups = [group for request in self._requests(split, version) for group in request.group_ids]
            self._group_ids[split, version] = groups
            self._of.update(dict.fromkeys(groups, (split, version)))
        return self._group_ids[split, version]

    def requests_after(self, version: int) -> list[SampleRequest]:
        """Return what is still to be sampled for a published version; the prior's test outputs are the baseline."""
        validation = self.requests("validation", version) if self.is_due(version) else []
        return validation + (self.requests("test", version) if version == 0 else [])

    def requests(self, split: Split, version: int) -> list[SampleRequest]:
        """Return what is still to be sampled to evaluate a version on a split, and report its completion later."""
        self._watch(split, version)
        usable = [request.without(self._left_out) for request in self._requests(split, version)]
        rest = [(request, {group for group in request.group_ids if self.store.has_group(group)}) for request in usable]
        strict = self._recipe.algorithm.strict  # a request is then sampled whole or not at all
        return [
            request if strict else request.without(there)
            for request, there in rest
            if len(there) < len(request.prompts)
        ]

    def is_complete(self, split: Split, version: int) -> bool:
        """Return whether every prompt is sampled, and scored by every scorer."""
        self._watch(split, version)
        return not self._lacking[split, version]

    def scored(self, groups: Iterable[str]) -> None:
        """Look at groups that may have all their scores now."""
        for group in groups:
            lacking = self._lacking.get(self._of[group]) if group in self._of else None
            if lacking and group in lacking and self._is_scored(group):
                lacking.remove(group)
                if not lacking:
                    self._unreported.add(self._of[group])

    def leave_out(self, items: Iterable[Item]) -> None:
        """Count items as failed: they will never have all their scores.

        A prompt that has brought down samplers is also left out of evaluations that have not sampled it yet.
        """
        for item in items:
            self._left_out.add(item.group_id)
            if item.service == SAMPLER and item.purpose != "train":
                self._deadly.setdefault((item.purpose, item.prompt_id), item.round)
        for evaluated, lacking in self._lacking.items():
            if lacking & self._left_out:
                lacking -= self._left_out
                if not lacking:
                    self._unreported.add(evaluated)

    def _leave_out_deadly(self, split: Split, version: int) -> None:
        pairs = zip(self._prompts[split], self.group_ids(split, version), strict=True)
        for prompt, group in pairs:
            if self._deadly.get((split, prompt.prompt_id), version + 1) <= version and not self.store.has_group(group):
                self._left_out.add(group)

    def newly_complete(self) -> Iterator[tuple[Split, int, Result]]:
        """Yield the results that have become complete since the last call."""
        while self._unreported:
            split, version = min(self._unreported)
            self._unreported.remove((split, version))
            yield split, version, self.result(split, version)

    def _watch(self, split: Split, version: int) -> None:
        """Ask the store once for an evaluation; after that, only groups passed to `scored` are looked at."""
        if (split, version) not in self._lacking:
            self._leave_out_deadly(split, version)
            groups = set(self.group_ids(split, version)) - self._left_out
            lacking = {group for group in groups if not self._is_scored(group)}
            self._lacking[split, version] = lacking
            if not lacking:
                self._unreported.add((split, version))

    def _requests(self, split: Split, version: int) -> list[SampleRequest]:
        return self._plan.requests(split, version, version, 1, self._prompts[split])

    def _is_scored(self, group: str) -> bool:
        return all(self.store.has_score(group, scorer) for scorer in self.scorers)

    def best_version(self) -> int:
        """Return the version that `evaluation.choose` and `evaluation.max_kl` make the best on validation prompts."""
        return best_of([self._candidate(version) for version in self.due_versions()], self._recipe.evaluation)

    def note_on_budget(self) -> str | None:
        """Return a warning where `evaluation.max_kl` leaves no trained version."""
        return note_on_budget([self._candidate(version) for version in self.due_versions()], self._recipe.evaluation)

    def stops_with(self, newest: int) -> str | None:
        """Return why training ends with the newest version (`evaluation.patience`), which is then the last; or None."""
        if newest < self._last:
            due = [version for version in self.due_versions() if version <= newest]
            complete = [self._candidate(version) for version in due if self.is_complete("validation", version)]
            self.stopped = reason_to_stop(complete, self._recipe.evaluation)
            self._last = self._last if self.stopped is None else newest
        return self.stopped

    def candidates(self, newest: int) -> list[int]:
        """Return the versions that may turn out to be the best: the best so far, and those not yet evaluated."""
        due = [version for version in self.due_versions() if version <= newest]
        complete = [version for version in due if self.is_complete("validation", version)]
        found = [self._candidate(version) for version in complete]
        best = may_be_best(found, self._recipe.evaluation) if found else []
        return best + [version for version in due if version not in complete]

    def _candidate(self, version: int) -> Candidate:
        if version not in self._candidates:
            result, outcomes = self.result("validation", version), self.outcomes("validation", version)
            rewards, gold = (outcomes[name].to_numpy() for name in ("reward", "gold_reward"))
            gains = rewards if result.train_rm_win_rate is None else np.where(np.isnan(gold), gold, rewards > gold)
            rank = merit(result.train_rm_win_rate, result.mean_reward)
            self._candidates[version] = Candidate(version, rank, result.kl_to_prior, gains)
        return self._candidates[version]

    def result(self, split: Split, version: int) -> Result:
        """Return the figures of a complete evaluation.

        Raises:
            PipelineError: no prompt has a reward and a prior log-probability, so there is nothing to report.
        """
        everything = self.group_ids(split, version)
        groups = [group for group in everything if group not in self._left_out]
        rewards, gold = self._values(groups, self._recipe.reward)
        prior, _ = self._values(groups, PRIOR)
        rows = self.store.groups(groups)
        outputs = [outputs[0] for outputs in rows["outputs"].to_pylist()]
        usable = [i for i in range(len(groups)) if None not in (rewards[i], prior[i])]
        if not usable:
            raise PipelineError(f"No {split} prompt of version {version} could be scored: {self._reason(groups)}.")
        compared = [(rewards[i], gold[i]) for i in usable if gold[i] is not None]
        wins = win_rate(*zip(*compared, strict=True)) if compared else None
        log_ratios = [sum(outputs[i]["token_logprobs"]) - prior[i] for i in usable]
        truth = self._recipe.evaluation.truth
        truths, gold_truths = self._values(groups, truth) if truth else ([None], [None])
        return Result(
            train_rm_win_rate=wins.rate if wins else None,
            train_rm_win_rate_ci95=wins.ci95 if wins else None,
            ties=wins.ties if wins else None,
            mean_reward=_mean([rewards[i] for i in usable]),
            mean_gold_reward=_mean_or_none(gold),
            truth_quality=_mean_or_none(truths),
            gold_truth_quality=_mean_or_none(gold_truths),
            kl_to_prior=_mean(log_ratios),
            mean_tokens=_mean([len(output["token_ids"]) for output in outputs]),
            ended=100 * _mean([output["finish_reason"] == "stop" for output in outputs]),
            prompts=len(usable),
            failed=len(everything) - len(usable),
        )

    def _reason(self, groups: list[str]) -> str:
        """Return why these groups have no value, as far as a scorer says so."""
        for name in (*self._recipe.reward_scorers(), PRIOR):
            for error in self.store.scores(groups, name, ["error"])["error"].to_pylist():
                if error is not None:
                    return f"{name!r} has no value: {error}"
        return "all of them are quarantined"

    def outcomes(self, split: Split, version: int) -> pa.Table:
        """Return one row per prompt of a complete evaluation, in the order of the prompts, for paired comparisons.

        Columns: prompt_id, log_ratio (log q(y|x) − log p(y|x), nats), reward, gold_reward, and for each scorer that is
        not the reward the output's value and gold's, as scores.NAME and gold_scores.NAME; null where one could not be
        computed.
        """
        groups = self.group_ids(split, version)
        known = [group for group in groups if self.store.has_group(group) and self._is_scored(group)]
        sampled = [sum(one[0]["token_logprobs"]) for one in self.store.groups(known)["outputs"].to_pylist()]
        prior, _ = self._values(known, PRIOR)
        judges = [name for name in self.scorers if name not in (PRIOR, self._recipe.objective.reward)]
        rewards = {"reward": self._recipe.reward, **{f"scores.{name}": name for name in judges}}
        columns = {"log_ratio": pc.subtract(pa.array(sampled, pa.float64()), pa.array(prior, pa.float64()))}
        for name, reward in rewards.items():
            values, gold = self._values(known, reward)
            columns |= {name: pa.array(values, pa.float64()), f"gold_{name}": pa.array(gold, pa.float64())}
        place = {group: index for index, group in enumerate(known)}
        rows = pa.table(columns).take(pa.array([place.get(group) for group in groups], pa.int64()))
        return rows.add_column(0, "prompt_id", pa.array([prompt.prompt_id for prompt in self._prompts[split]]))

    def texts(self, split: Split, version: int) -> list[tuple[str, str | None, str, float | None]]:
        """Return (prompt, gold, output, reward) for each prompt; a failed one has no output or reward."""
        groups = self.group_ids(split, version)
        known = [group for group in groups if group not in self._left_out]
        outputs = [outputs[0]["text"] for outputs in self.store.groups(known)["outputs"].to_pylist()]
        rewards, _ = self._values(known, self._recipe.reward)
        found = dict(zip(known, zip(outputs, rewards, strict=True), strict=True))
        return [
            (prompt.text, prompt.gold_text, *found.get(group, ("(left out)", None)))
            for prompt, group in zip(self._prompts[split], groups, strict=True)
        ]

    def _values(self, groups: list[str], reward: str | CombinationSection) -> tuple[list[Any], list[Any]]:
        """Return (values of the outputs, values of the gold outputs), one per group."""
        scores = stored_rewards(self.store, groups, reward)
        return pc.list_element(scores["values"], 0).to_pylist(), scores["gold_value"].to_pylist()


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))


def _mean_or_none(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None
