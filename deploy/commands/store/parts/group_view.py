"""One stored group with everything that is known of it, joined from groups, scores and steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from brain_align.common.config.objective_sections import GoodnessSection
from brain_align.common.errors import UserError
from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.store.overlay import Store
from brain_align.common.store.posterior import log_weights, self_normalised
from brain_align.common.store.rewards import stored_rewards
from brain_align.deploy.run.stored_source import Ranking

_CANDIDATES = 5  # ids that an ambiguous prefix's error shows


@dataclass(frozen=True)
class GroupView:
    """A group, column-wise over its n outputs; NaN where a value is missing."""

    row: dict[str, Any]  # of GROUPS
    values: dict[str, np.ndarray]  # of each scorer but the prior, and of the reward that ranks  # [n] each
    gold: dict[str, float | None]  # the gold output's values, by scorer
    errors: dict[str, str]  # by scorer
    prior: np.ndarray  # log p(y|x)  # [n]
    proposal: np.ndarray  # log q'(y|x) as sampled, or recomputed where the run did so  # [n]
    policy: np.ndarray | None  # log q_θ(y|x) of the version that was asked for  # [n]
    log_weights: np.ndarray | None  # not normalised; None where no scorer ranks  # [n]
    steps: list[int]  # those that trained it

    @property
    def alpha(self) -> np.ndarray | None:
        """The posterior's weights.  # [n]."""
        return None if self.log_weights is None else self_normalised(self.log_weights)

    @property
    def beta(self) -> np.ndarray | None:
        """The policy's own weights, β ∝ q_θ/q'.  # [n]."""
        return None if self.policy is None else self_normalised(self.policy - self.proposal)

    def by_weight(self) -> list[int]:
        """Return the outputs' numbers, the heaviest first, those without a weight last; ties stay as sampled."""
        if self.log_weights is None:
            return list(range(len(self.proposal)))
        known = np.nan_to_num(self.log_weights, nan=-np.inf)
        return np.argsort(-known, kind="stable").tolist()


def find_group(store: Store, prefix: str) -> str:
    """Return the only group id that begins with `prefix`; refuse a prefix of none or of several."""
    ids = store.index()["group_id"]
    found = ids.filter(pc.starts_with(ids, prefix)).to_pylist()
    if prefix in found:
        return prefix
    if not found:
        raise UserError(
            f"No group of {store.root} has an id that begins with {prefix!r}; `brain store export` lists all."
        )
    if len(found) > 1:
        shown = ", ".join(found[:_CANDIDATES]) + (", …" if len(found) > _CANDIDATES else "")
        raise UserError(f"{len(found)} groups begin with {prefix!r} ({shown}); give more of the id.")
    return found[0]


def group_view(
    store: Store,
    group: str,
    ranked_by: Ranking | None,
    goodness: GoodnessSection,
    policy: np.ndarray | None = None,
) -> GroupView:
    """Gather what the store holds of a group; `policy` is log q_θ(y|x) where it is known.  # [n]."""
    row = store.groups([group]).to_pylist()[0]
    count = len(row["outputs"])
    names = {facts.name for facts in store.scorers()}
    scores = {name: store.scores([group], name).to_pylist()[0] for name in names if store.has_score(group, name)}
    values = {name: np.array(scores[name]["values"], dtype=np.float64) for name in sorted(scores)}  # null -> NaN
    prior = values.pop(PRIOR, np.full(count, np.nan))
    sampled = np.array([sum(output["token_logprobs"]) for output in row["outputs"]])
    proposal = values.pop(PROPOSAL, sampled)  # the recomputed ones where there are any, as the learner takes them
    gold = {name: scores[name]["gold_value"] for name in values}
    weights = None
    if ranked_by is not None and all(name in values for name in ranked_by.scorers):
        rewards = stored_rewards(store, [group], ranked_by.reward).to_pylist()[0]
        values[ranked_by.name] = np.array(rewards["values"], dtype=np.float64)
        gold[ranked_by.name] = rewards["gold_value"]
        weights = log_weights(values[ranked_by.name], prior, proposal, goodness)
    return GroupView(
        row=row,
        values=values,
        gold=gold,
        errors={name: score["error"] for name, score in sorted(scores.items()) if score["error"]},
        prior=prior,
        proposal=proposal,
        policy=policy,
        log_weights=weights,
        steps=[step["step"] for step in store.steps() if group in step["group_ids"]],
    )
