"""The paper's findings, and what a comparison says of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.compare.inference import PairedDifference
from deploy.compare.results import PairedTest

Outcome = Literal["shown", "same sign", "not reproduced"]

LADDER = ("dpo-sft", "dpo-sft+iw", "dpo-sft+iw+n", "brain")
"""From DPO to BRAIn, one change a rung (paper, Table 3)."""


@dataclass(frozen=True)
class Claim:
    """`better` has the higher train-RM win rate, says the paper."""

    text: str
    source: str
    better: str
    worse: str


CLAIMS = (
    Claim("importance weights improve on DPO-sft", "Table 3", LADDER[1], LADDER[0]),
    Claim("all n outputs improve on pairs", "Table 3", LADDER[2], LADDER[1]),
    Claim("BRAIn improves on its fixed, pairwise ancestors", "Table 3", LADDER[3], LADDER[2]),
    Claim("BRAIn improves on DPO-sft", "Table 1", "brain", "dpo-sft"),
    Claim("BRAIn improves on DPO", "Table 1", "brain", "dpo"),
    Claim("BRAIn improves on RSO", "Table 1", "brain", "rso"),
    Claim("without the baseline it is worse", "§9.3", "brain", "brain-no-baseline"),
    Claim("a proposal fixed at the prior costs", "§9.5", "brain", "brain-fixed-proposal"),
)


@dataclass(frozen=True)
class Finding:
    """What a comparison says of a claim.

    Attributes:
        claim: of the paper.
        outcome: `shown` where the whole 95 % interval of the difference is above 0, and that of each of two or more
            seeds is, too; `not reproduced` where the difference is below 0.
        difference: of the train-RM win rates, percentage points.
    """

    claim: Claim
    outcome: Outcome
    difference: PairedDifference


def findings(tests: Sequence[PairedTest]) -> list[Finding]:
    """What paired tests say of the claims whose methods were compared, in the order of the claims."""
    of_pair = {(test.ours, test.theirs): test.win_rate for test in tests}
    found = ((claim, of_pair.get((claim.better, claim.worse))) for claim in CLAIMS)
    return [Finding(claim, _outcome(difference), difference) for claim, difference in found if difference is not None]


def _outcome(difference: PairedDifference) -> Outcome:
    if difference.low > 0 and len(difference.by_seed) > 1 and min(difference.by_seed) > 0:
        return "shown"
    return "same sign" if difference.difference >= 0 else "not reproduced"
