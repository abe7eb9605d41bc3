"""Which figures are drawn together, with a sentence on each; the page's script draws them with uPlot."""

import math
from dataclasses import dataclass
from typing import Any

from brain_align.deploy.report.metrics import Columns
from brain_align.deploy.report.outcomes import histogram
from brain_align.deploy.report.run_data import RunData


@dataclass(frozen=True)
class Curve:
    """A figure over time: `table` is steps, versions (on validation prompts) or rounds."""

    label: str
    table: str
    name: str
    band: str | None = None  # the half-width of its 95 % interval, a figure of the same table


@dataclass(frozen=True)
class Chart:
    """Some curves on common axes, the sentence below them, and the bounds of the y axis, if it has some."""

    title: str
    unit: str
    note: str
    curves: tuple[Curve, ...]
    least: float | None = None
    most: float | str | None = None  # a number, or the name of a run's setting


CHARTS = (
    Chart(
        "Reward",
        "",
        "What training pushes up. Outputs that are trained on are sampled from earlier versions; validation prompts "
        "are never trained on.",
        (
            Curve("training outputs", "steps", "reward_mean"),
            Curve("validation", "versions", "mean_reward"),
            Curve("reference outputs", "versions", "mean_gold_reward"),
        ),
    ),
    Chart(
        "Ground truth",
        "",
        "A scorer that training never sees (evaluation.truth). Where it falls while the reward rises, the policy "
        "learns to please the reward model only.",
        (
            Curve("validation", "versions", "truth_quality"),
            Curve("reference outputs", "versions", "gold_truth_quality"),
        ),
    ),
    Chart(
        "Win rate against the reference",
        "%",
        "Validation prompts whose output has a higher reward than the reference output, with 95 % intervals.",
        (Curve("validation", "versions", "train_rm_win_rate", "train_rm_win_rate_ci95"),),
    ),
    Chart(
        "KL to the prior",
        "nats",
        "How far the policy has moved from the SFT model, per output.",
        (Curve("training", "steps", "kl_policy_prior"), Curve("validation", "versions", "kl_to_prior")),
    ),
    Chart(
        "Effective sample size",
        "outputs of n",
        "How many of a group's n outputs carry the weight of the posterior (α), and of the policy (β). α near 1: γ "
        "(objective.temperature) is too small for the spread of rewards; near n: so large that nothing is learnt.",
        (Curve("α", "steps", "ess_alpha"), Curve("β", "steps", "ess_beta")),
        least=0.0,
        most="n",
    ),
    Chart(
        "Output length",
        "tokens",
        "A reward that only grows with length is a warning.",
        (Curve("training outputs", "steps", "output_tokens"), Curve("validation", "versions", "mean_tokens")),
    ),
    Chart(
        "Finished outputs",
        "%",
        "Outputs that ended with EOS before the length limit.",
        (Curve("training outputs", "steps", "ended"), Curve("validation", "versions", "ended")),
        most=100.0,
    ),
    Chart("Loss", "", "The objective's own; comparable within a run only.", (Curve("loss", "steps", "loss"),)),
    Chart(
        "Staleness",
        "versions",
        "How many versions old the proposal was when a round's groups were sampled.",
        (Curve("mean", "rounds", "staleness_mean"), Curve("largest", "rounds", "staleness_max")),
        least=0.0,
    ),
    Chart(
        "Sampler and learner: gap per output",
        "nats",
        "Standard deviation, within a group, of the differences between the sampler's and the learner's "
        "log-probabilities of an output: noise in the weights.",
        (Curve("per output", "steps", "sampler_gap_sd"),),
        least=0.0,
    ),
    Chart(
        "Sampler and learner: gap per token",
        "nats",
        "Difference of the log-probabilities per token, at steps where they can be compared.",
        (Curve("mean", "steps", "sampler_gap_mean"), Curve("largest", "steps", "sampler_gap_max")),
        least=0.0,
    ),
    Chart(
        "Throughput",
        "tokens/s",
        "Output tokens over the last minute. The slowest stage bounds the others; 'Time' below has their idle shares.",
        (
            Curve("sampled", "steps", "sampled_tokens_per_second"),
            Curve("scored", "steps", "scored_tokens_per_second"),
            Curve("trained", "steps", "trained_tokens_per_second"),
        ),
        least=0.0,
    ),
)

_NOT_DRAWN = {"step", "time", "round", "version", "prompts", "failed"}


def other_figures(runs: list[RunData]) -> list[str]:
    """Return the logged figures of steps that no chart draws, which the page offers one at a time."""
    drawn = {curve.name for chart in CHARTS for curve in chart.curves if curve.table == "steps"}
    names = dict.fromkeys(name for run in runs for name in run.metrics.steps)
    return [name for name in names if name not in drawn | _NOT_DRAWN]


def tables_of(run: RunData) -> dict[str, Columns]:
    """Return a run's curves by table; `x` is the optimiser step: a version's last one, the first one of a round."""
    updates = run.recipe.algorithm.updates_per_round
    steps, versions, rounds = run.metrics.steps, run.metrics.validation, run.rounds
    return {
        "steps": {"x": steps.get("step", []), **steps},
        "versions": {"x": [updates * version for version in versions.get("version", [])], **versions},
        "rounds": {"x": [updates * number + 1 for number in rounds.get("round", [])], **rounds},
    }


def distances(run: RunData) -> list[dict[str, Any]]:
    """Return reward against √KL (nats^½): a point per validated version, then of the test prompts' before and after."""
    columns = run.metrics.validation
    rows = [run.metrics.evaluated("validation", version) or {} for version in columns.get("version", [])]
    points = [(f"version {row['version']}, validation", row) for row in rows]
    if run.evaluated is not None and run.evaluated.split == "test":
        points.append((f"version {run.evaluated.version}, test", run.evaluated.after))
    return [
        {"label": label, "x": math.sqrt(max(0.0, row["kl_to_prior"])), "y": row["mean_reward"]} for label, row in points
    ]


def histograms(run: RunData) -> dict[str, Any]:
    """Return the distributions of rewards and of lengths, before and after."""
    if run.evaluated is None:
        return {}
    before, after = run.evaluated.outcomes
    name = f"version {run.evaluated.version}"
    references = [one.reference_reward for one in after.values()]
    rewards = {"SFT": [one.reward for one in before.values()], name: [one.reward for one in after.values()]}
    lengths = {"SFT": [one.tokens for one in before.values()], name: [one.tokens for one in after.values()]}
    found = {
        "reward": histogram({**rewards, "reference": references}),
        "length, tokens": histogram(lengths, whole=True),
    }
    return {title: one for title, one in found.items() if one}
