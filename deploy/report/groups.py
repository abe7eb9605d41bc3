"""Stored groups as the page shows them: each output with its reward and its weights α and β."""

from typing import Any

import numpy as np

from brain_align.common.config.objective_sections import GoodnessSection
from brain_align.common.errors import UserError
from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.store.overlay import Store
from brain_align.common.store.posterior import log_weights, masked, self_normalised
from brain_align.common.store.rewards import stored_rewards
from brain_align.deploy.run.stored_source import GroupLogprobs, Ranking, Source, goodness_of, ranking


def stored_groups(source: Source, count: int, logprobs: GroupLogprobs | None = None) -> list[dict[str, Any]]:
    """Return up to `count` scored groups of a run's store, evenly over its rounds, in the order of commitment.

    `logprobs` are those of the version whose β is shown; without it β is that of the proposal itself, 1/n.
    """
    try:
        ranked_by = ranking(source, None)
    except UserError:  # nothing is scored yet
        return []
    chosen = _chosen(source.store, [*ranked_by.scorers, PRIOR], count)
    goodness = goodness_of(source)
    return [_shown(source.store, group, ranked_by, goodness, logprobs) for group in chosen]


def _chosen(store: Store, scorers: list[str], count: int) -> list[str]:
    index = store.index()
    groups, rounds = index["group_id"].to_pylist(), index["round"].to_numpy()
    scored = np.logical_and.reduce([store.has_scores(groups, name) for name in scorers])
    places = np.flatnonzero(scored)
    if not len(places):
        return []
    each = max(1, count // len(np.unique(rounds[places])))
    kept = np.concatenate([places[rounds[places] == round_][:each] for round_ in np.unique(rounds[places])])
    spread = kept[np.linspace(0, len(kept) - 1, min(count, len(kept))).astype(int)]  # of more rounds than groups
    return [groups[place] for place in sorted(spread.tolist())]


def _shown(
    store: Store, group: str, ranked_by: Ranking, goodness: GoodnessSection, logprobs: GroupLogprobs | None
) -> dict[str, Any]:
    (batch,) = store.groups([group]).combine_chunks().to_batches()
    (row,) = batch.to_pylist()
    outputs = row["outputs"]
    scored = stored_rewards(store, [group], ranked_by.reward).to_pylist()[0]
    rewards, prior = _array(scored["values"]), _array(_scores(store, group, PRIOR))
    sampled = np.array([sum(output["token_logprobs"]) for output in outputs])
    recomputed = store.has_score(group, PROPOSAL)  # as the learner takes them
    proposal = _array(_scores(store, group, PROPOSAL)) if recomputed else sampled
    policy = proposal if logprobs is None else _array(logprobs(batch)[0])
    finished = np.array([output["finish_reason"] == "stop" for output in outputs])
    alpha = self_normalised(log_weights(rewards, prior, proposal, goodness, finished))
    beta = self_normalised(np.where(masked(finished, goodness), np.nan, policy - proposal))
    shown = [
        {
            "text": output["text"],
            "alpha": alpha[place],
            "beta": beta[place],
            "reward": rewards[place],
            "log_p": prior[place],
            "log_q": proposal[place],
            "tokens": len(output["token_ids"]),
            "finished": bool(finished[place]),
        }
        for place, output in enumerate(outputs)
    ]
    weights = alpha[np.isfinite(alpha)]
    return {
        "id": group,
        "prompt": row["prompt_text"],
        "reference": row["gold_text"],
        "reference_reward": scored["gold_value"],
        "round": row["round"],
        "version": row["proposal_version"],
        "ess": 1 / float(np.square(weights).sum()) if len(weights) else None,  # of α, of the n outputs
        "outputs": [shown[place] for place in np.argsort(-np.nan_to_num(alpha, nan=-1.0), kind="stable")],
    }


def _scores(store: Store, group: str, scorer: str) -> list[float | None]:
    return store.scores([group], scorer, ["values"])["values"][0].as_py()


def _array(values: list[float | None]) -> np.ndarray:
    return np.array(values, dtype=np.float64)  # null -> NaN


def round_columns(store: Store) -> dict[str, list[Any]]:
    """Return by round how many versions behind it its groups were sampled: the mean and the most."""
    index = store.index()
    rounds = index["round"].to_numpy()
    behind = rounds - index["proposal_version"].to_numpy()
    numbers = np.unique(rounds)
    of_rounds = [behind[rounds == number] for number in numbers]
    return {
        "round": numbers.tolist(),
        "staleness_mean": [float(one.mean()) for one in of_rounds],
        "staleness_max": [int(one.max()) for one in of_rounds],
    }
