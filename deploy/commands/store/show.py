"""Show one group: its prompt, outputs, rewards and weights.

Shows one group with its outputs sorted by α, the weight that BRAIn's posterior gives them (paper, eq. 20).

Examples:
  brain store show runs/demo 3f2a
  brain store show runs/demo 3f2a --policy 4 --full
"""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.table import Table

from brain_align.common.config.objective_sections import GoodnessSection
from brain_align.common.errors import UserError
from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.store.overlay import Store
from brain_align.common.store.posterior import log_weights, masked, self_normalised
from brain_align.common.store.rewards import stored_rewards
from brain_align.deploy.api.samples import policy_logprobs
from brain_align.deploy.commands.store.parts.terminal import add_store, opened
from brain_align.deploy.console import PlainConsole, terminal
from brain_align.deploy.run.stored_source import Ranking, Source, goodness_of, ranking

_PROMPT_SHOWN = 300  # characters of a prompt without --full
_NARROWEST_TEXT = 20  # columns

GROUP = "Inspect"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_store(parser)
    parser.add_argument("group", metavar="GROUP", help="a group's id, or a unique beginning of it")
    parser.add_argument("--scorer", metavar="NAME", help="the scorer whose values are the rewards; default: the run's")
    parser.add_argument(
        "--policy", type=int, metavar="N", help="compute log q_θ and β under version N of the run's policy"
    )
    parser.add_argument("--full", action="store_true", help="show whole texts")


def run(options: argparse.Namespace) -> None:
    """Show the group."""
    source = opened(options.place)
    group = find_group(source.store, options.group)
    scored = any(facts.name not in (PRIOR, PROPOSAL) for facts in source.store.scorers())
    ranked_by = ranking(source, options.scorer) if scored or options.scorer else None
    objective = goodness_of(source)
    policy = None if options.policy is None else _policy_logprobs(source, group, options.policy)
    view = group_view(source.store, group, ranked_by, objective, policy)
    show_group(view, terminal(), full=options.full)
    for note in _notes(view, source, ranked_by, objective, options.policy):
        terminal().print(note, soft_wrap=True, style="dim")


def _policy_logprobs(source: Source, group: str, version: int) -> np.ndarray:
    """Compute log q_θ(y|x) of a group's outputs, NaN where there is none.  # [n] float64."""
    (row,) = source.store.groups([group]).combine_chunks().to_batches()
    (values,) = policy_logprobs(source, version)(row)
    return np.array(values, dtype=np.float64)  # null -> NaN


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
    masked: np.ndarray  # cut outputs that the objective gives no weight  # [n] bool
    log_weights: np.ndarray | None  # not normalised; None where no scorer ranks  # [n]
    steps: list[int]  # those that trained it

    @property
    def alpha(self) -> np.ndarray | None:
        """The posterior's weights.  # [n]."""
        return None if self.log_weights is None else self_normalised(self.log_weights)

    @property
    def beta(self) -> np.ndarray | None:
        """The policy's own weights, β ∝ q_θ/q'.  # [n]."""
        if self.policy is None:
            return None
        return self_normalised(np.where(self.masked, np.nan, self.policy - self.proposal))

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
    finished = np.array([output["finish_reason"] == "stop" for output in row["outputs"]])
    weights = None
    if ranked_by is not None and all(name in values for name in ranked_by.scorers):
        rewards = stored_rewards(store, [group], ranked_by.reward).to_pylist()[0]
        values[ranked_by.name] = np.array(rewards["values"], dtype=np.float64)
        gold[ranked_by.name] = rewards["gold_value"]
        weights = log_weights(values[ranked_by.name], prior, proposal, goodness, finished)
    return GroupView(
        row=row,
        values=values,
        gold=gold,
        errors={name: score["error"] for name, score in sorted(scores.items()) if score["error"]},
        prior=prior,
        proposal=proposal,
        policy=policy,
        masked=masked(finished, goodness),
        log_weights=weights,
        steps=[step["step"] for step in store.steps() if group in step["group_ids"]],
    )


def show_group(view: GroupView, console: PlainConsole, *, full: bool) -> None:
    """Print a group."""
    row = view.row
    sampled = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row["finished_at"]))
    trained = f"trained in step {', '.join(map(str, view.steps))}" if view.steps else "not trained"
    console.print(
        f"group   {row['group_id']}, prompt {row['prompt_id']}\n"
        f"sampled in round {row['round']} from version {row['proposal_version']} (digest "
        f"{row['proposal_digest'][:8]}) by {row['sampler_id']}, {sampled} UTC, temperature {row['temperature']:g}; "
        f"{trained}",
    )
    prompt = row["prompt_text"].strip()
    if not full and len(prompt) > _PROMPT_SHOWN:
        prompt = f"{prompt[:_PROMPT_SHOWN]} … (--full shows all)"
    console.print(f"\n{prompt}\n")
    if row["gold_text"] is not None:
        golds = [f"{name} {value:.3f}" for name, value in view.gold.items() if value is not None]
        figures = f" ({', '.join(golds)})" if golds else ""
        console.print(f"gold{figures}: {_one_line(row['gold_text'])}\n", no_wrap=not full, overflow="ellipsis")
    console.print(_outputs(view, console.width, full=full))
    for name, error in view.errors.items():
        console.print(f"{name} could not compute everything: {error}", style="red")


def _outputs(view: GroupView, console_width: int, *, full: bool) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0), pad_edge=False)
    figures = {
        "α": (view.alpha, "{:.3f}"),
        **({} if view.policy is None else {"β": (view.beta, "{:.3f}"), "log q": (view.policy, "{:.2f}")}),
        **{name: (values, "{:.2f}") for name, values in view.values.items()},
        "log p": (view.prior, "{:.2f}"),
        "log q'": (view.proposal, "{:.2f}"),
        "log w": (view.log_weights, "{:.2f}"),
    }
    rows = []
    for number in view.by_weight():
        output = view.row["outputs"][number]
        shown = [_figure(values, number, form) for values, form in figures.values()]
        ends = "eos" if output["finish_reason"] == "stop" else output["finish_reason"]
        text = output["text"].strip() if full else _one_line(output["text"])
        rows.append([str(number), *shown, str(len(output["token_ids"])), ends, text or "(empty)"])
    names = ["#", *figures, "tokens", "end"]
    widths = [max(map(len, cells)) for cells in zip(names, *(row[:-1] for row in rows), strict=True)]
    for name, width in zip(names, widths, strict=True):
        table.add_column(name, justify="right", no_wrap=True, width=width)
    left = max(_NARROWEST_TEXT, console_width - sum(widths) - len(names))  # one space between columns
    table.add_column("output", no_wrap=not full, overflow="fold" if full else "ellipsis", width=left)
    for row in rows:
        table.add_row(*row)
    return table


def _notes(
    view: GroupView, source: Source, ranked_by: Ranking | None, objective: GoodnessSection, version: int | None
) -> list[str]:
    notes = []
    if ranked_by is None or view.alpha is None:
        notes.append("α needs rewards and prior log-probabilities; this group has no rewards yet.")
    else:
        whose = "as in the run's recipe" if source.recipe else "the paper's, as only a store was named, not its run"
        notes.append(
            f"α ∝ p(G=1|x,y)·p/q' (eq. 20), goodness {objective.goodness} of {ranked_by.name} at γ = "
            f"{objective.temperature:g}, {whose}; log w is its logarithm, not normalised."
        )
    count = len(view.proposal)
    if view.policy is not None:
        notes.append(f"β ∝ q_θ/q' (eq. 11), with the log q_θ of version {version}, computed now.")
    else:
        notes.append(
            f"β ∝ q_θ/q' needs a policy's log-probabilities, which a store does not hold: --policy N computes them. At "
            f"the proposal itself (q_θ = q') it is 1/{count} = {1 / count:.3f} for each output."
        )
    return notes


def _figure(values: np.ndarray | None, number: int, form: str) -> str:
    return "–" if values is None or np.isnan(values[number]) else form.format(values[number])


def _one_line(text: str) -> str:
    return " ".join(text.split())
