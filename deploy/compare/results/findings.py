"""The paper's claims, and the outcome of each in a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from brain_align.common.inference import Floats, PairedDifference, paired_bootstrap
from brain_align.deploy.compare.results.method_results import PairedTest, known

Outcome = Literal["shown", "same sign", "undecided", "not reproduced"]

LADDER = ("dpo-sft", "dpo-sft+iw", "dpo-sft+iw+n", "brain")
"""From DPO to BRAIn, one change per rung (paper, Table 3)."""


@dataclass(frozen=True)
class PaperClaim:
    """A claim of the paper: `better` has a higher win rate (training reward) than `worse`."""

    text: str
    source: str
    better: str
    worse: str


CLAIMS = (
    PaperClaim("importance weights improve on DPO-sft", "Table 3", LADDER[1], LADDER[0]),
    PaperClaim("all n outputs improve on pairs", "Table 3", LADDER[2], LADDER[1]),
    PaperClaim("an updated proposal improves on one fixed at the prior", "Table 3, §9.5", LADDER[3], LADDER[2]),
    PaperClaim("BRAIn improves on DPO-sft", "Table 1", "brain", "dpo-sft"),
    PaperClaim("BRAIn improves on DPO", "Table 1", "brain", "dpo"),
    PaperClaim("BRAIn improves on RSO", "Table 1", "brain", "rso"),
    PaperClaim("without the baseline it is worse", "§9.3", "brain", "brain-no-baseline"),
    PaperClaim("a proposal fixed at the prior costs", "§9.5", "brain", "brain-fixed-proposal"),
)

SAME_METHOD = (LADDER[2], "brain-fixed-proposal")
"""With q' = p BRAIn is the rung below it: they differ only by numerics."""


@dataclass(frozen=True)
class Finding:
    """The outcome of a claim in a comparison."""

    claim: PaperClaim
    # `shown` where the whole 95 % interval of the difference is above 0, and so is the difference of each of two or
    # more seeds; `same sign` where only the interval is; `not reproduced` where the whole interval is below 0;
    # `undecided` where it contains 0.
    outcome: Outcome
    difference: PairedDifference  # of the win rate (training reward)s, percentage points


def findings(tests: Sequence[PairedTest]) -> list[Finding]:
    """Return the outcomes of the claims whose methods were compared, in the order of the claims."""
    of_pair = {(test.ours, test.theirs): test.win_rate for test in tests}
    rung, again = ((LADDER[3], worse) for worse in SAME_METHOD)
    if of_pair.get(rung) is not None:
        of_pair.pop(again, None)  # one finding of one experiment
    found = ((claim, of_pair.get((claim.better, claim.worse))) for claim in CLAIMS)
    return [Finding(claim, _outcome(difference), difference) for claim, difference in found if difference is not None]


def size_findings(label: str, wins: Mapping[int, Floats]) -> list[Finding]:
    """Return the outcomes of figure 2 for one method: its win rate rises with n, and BRAIn's saturates.

    `wins` has 100 or 0 for each test prompt, NaN where unknown, by n; all of the same seeds.  # [seeds, prompts]
    """
    if len(wins) < 2:
        return []
    sizes = sorted(wins)
    first, last = sizes[0], sizes[-1]
    rise = PaperClaim("the win rate rises with n", "Figure 2", f"{label}, n = {last}", f"{label}, n = {first}")
    found = [_finding(rise, wins[last] - wins[first])]
    if len(wins) > 2 and label == "brain":
        second, before = sizes[1], sizes[-2]
        steps = f"{label}, n {first} → {second}", f"{label}, n {before} → {last}"
        saturates = PaperClaim("it saturates: the last step gains less than the first", "Figure 2", *steps)
        found.append(_finding(saturates, wins[second] - wins[first] - (wins[last] - wins[before])))
    return found


def _finding(claim: PaperClaim, differences: Floats) -> Finding:
    difference = paired_bootstrap(known(differences))
    return Finding(claim, _outcome(difference), difference)


def _outcome(difference: PairedDifference) -> Outcome:
    if difference.high < 0:
        return "not reproduced"
    if difference.low <= 0:
        return "undecided"
    of_each_seed = len(difference.by_seed) > 1 and min(difference.by_seed) > 0
    return "shown" if of_each_seed else "same sign"
