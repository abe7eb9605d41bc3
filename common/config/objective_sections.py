"""What an objective can be told: one section class a family, so that a setting that a method does not have is refused.

What the settings do is said where the losses are: learner/objectives. Defaults are those of the papers where these
name one for language models; docs/objectives.md says which are ours.
"""

from typing import ClassVar, Literal

from pydantic import Field

from brain_align.common.config.origin import Origin
from brain_align.common.config.section import Section
from brain_align.common.schemas import HUMAN

Pairing = Literal["consecutive", "all", "best-worst"]
_OWN = r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"


class ObjectiveBase(Section):
    """What every objective has.

    Attributes:
        ORIGIN: whose outputs it is defined on; what follows from that is decided by this alone.
    """

    ORIGIN: ClassVar[Origin] = Origin.OPEN

    name: str
    reward: str = Field("reward", description="a scorer, whose values are the rewards, or a name under `rewards`")
    reward_transform: Literal["none", "win-rate"] = Field(
        "none", description="win-rate (SPO): a reward becomes the mean over the others of σ(r_i − r_j)"
    )
    temperature: float = Field(1.0, gt=0, description="gamma: rewards are divided by it")

    @property
    def needs_gold(self) -> bool:
        """Whether the loss reads the log-probability of the gold output."""
        return False

    def refusal_of_texts(self, texts: str) -> str | None:
        """Why texts that nobody sampled cannot be trained on; None where they can.

        Args:
            texts: which.
        """
        if not self.ORIGIN.relies_on_proposal:
            return None
        return (
            f"objective.name={self.name} needs samples of a known proposal with their log-probabilities, which {texts} "
            f"are not; sample groups (sampler.replicas=1 or more, and objective.reward a scorer), or choose one for "
            f"which any pairs will do, such as dpo or ipo"
        )


class GoodnessSection(ObjectiveBase):
    """What methods have that aim at the posterior p(y|x) p(G=1|x,y) / Z."""

    ORIGIN = Origin.PROPOSAL

    goodness: Literal["bradley-terry", "logistic"] = "bradley-terry"


class BrainSection(GoodnessSection):
    """BRAIn (paper, equations 12-14), also without its baseline (§9.3)."""

    name: Literal["brain", "brain-no-baseline"] = "brain"


class SpoSection(GoodnessSection):
    """BRAIn on win rates; `reward_transform: win-rate` does the same to any other objective."""

    name: Literal["spo"]
    reward_transform: Literal["win-rate"] = "win-rate"


class PolicyGradientSection(GoodnessSection):
    """Distributional policy gradients, with a running mean of the normaliser Z."""

    name: Literal["dpg", "gdc++"]


class FixedProposalSection(GoodnessSection):
    """BRAIn with q' = p: sampled so throughout (§9.5), or taken to be so, the ladder's last but one step (§9.2)."""

    ORIGIN = Origin.PRIOR
    name: Literal["brain-fixed-proposal", "dpo-sft+iw+n"]


class PairSection(ObjectiveBase):
    """What methods have that compare two outputs: the higher reward wins, ties are dropped."""

    ORIGIN = Origin.ANY
    pairs: Pairing = Field("consecutive", description="consecutive: disjoint neighbours, 16 of 32 outputs")


class WeightedPairSection(PairSection, GoodnessSection):
    """Soft labels: both orders of a pair, weighted by the reward model's probability of each (paper, eq. 22)."""

    ORIGIN = Origin.PRIOR_BY_NAME
    name: Literal["dpo-sft+iw"]


class LogisticPairSection(PairSection):
    """What methods have that make a pair's margin a probability, as DPO does."""

    beta: float = Field(0.1, gt=0)


class HumanPairSection(LogisticPairSection):
    """DPO on pairs that people chose between."""

    ORIGIN = Origin.PRIOR_BY_NAME
    name: Literal["dpo"]
    reward: str = Field(HUMAN, description="the choice, as `brain store import-pairs` stores it")


class DpoSection(LogisticPairSection):
    """DPO on pairs of the prior's outputs that the reward ranks."""

    ORIGIN = Origin.PRIOR_BY_NAME
    name: Literal["dpo-sft"]


class SmoothedSection(LogisticPairSection):
    """DPO where a share `epsilon` of the labels is taken for wrong."""

    name: Literal["cdpo", "rdpo"]
    epsilon: float = Field(0.1, ge=0, lt=0.5)


class IpoSection(PairSection):
    """Identity preference optimisation."""

    name: Literal["ipo"]
    tau: float = Field(0.1, gt=0)


class SimpoSection(PairSection):
    """Length-normalised, without a reference model."""

    name: Literal["simpo"]
    beta: float = Field(2.0, gt=0)
    margin: float = Field(1.0, ge=0, description="the paper's gamma")


class RsoSection(PairSection):
    """Statistical rejection sampling, then pairs of what was accepted."""

    ORIGIN = Origin.PRIOR
    name: Literal["rso"]
    accepted: int | None = Field(
        None, ge=2, description="outputs a prompt that rejection sampling keeps; not set: one in 8, at least 2"
    )
    beta: float = Field(0.5, gt=0, description="of the acceptance probability exp((r − r_max)/beta)")
    gamma: float = Field(0.05, gt=0, description="scale of the log-ratios in the loss")
    loss: Literal["sigmoid-norm", "hinge-norm"] = "sigmoid-norm"

    def accepted_of(self, outputs: int) -> int:
        """How many outputs of a group of so many are accepted (8 of 64 in the paper)."""
        return max(2, outputs // 8) if self.accepted is None else self.accepted

    def refusal(self, outputs: int) -> str | None:
        """Why groups of so many outputs are too small; None where they are not."""
        accepted = self.accepted_of(outputs)
        if accepted < outputs:
            return None
        return (
            f"objective.name=rso would accept {accepted} of {outputs} outputs of a prompt, so that nothing is "
            f"rejected, and it is DPO; sample more (sampling.n), or lower objective.accepted"
        )


class SftTermSection(ObjectiveBase):
    """What methods have that add −log q(y), as in supervised fine-tuning."""

    sft_on: str
    sft_weight: float = Field(ge=0)

    @property
    def needs_gold(self) -> bool:
        """See `ObjectiveBase`."""
        return self.sft_on == "gold" and self.sft_weight > 0


class BestOrGoldSection(SftTermSection):
    """What methods have where y is one of the whole group: its best output, or gold."""

    sft_on: Literal["best", "gold"] = Field("best", description="best: the output of the highest reward")


class SlicSection(PairSection, BestOrGoldSection):
    """Sequence likelihood calibration from human feedback."""

    name: Literal["slic"]
    margin: float = Field(1.0, gt=0, description="the paper's delta")
    sft_on: Literal["best", "gold"] = "gold"
    sft_weight: float = Field(0.1, ge=0, description="the paper's lambda")


class DpoNllSection(LogisticPairSection, SftTermSection):
    """DPO and the likelihood of what was chosen."""

    name: Literal["dpo+nll"]
    sft_on: Literal["chosen", "gold"] = Field("chosen", description="chosen: each pair's winner")
    sft_weight: float = Field(0.005, ge=0, description="the paper's eta: −log q(y) is weighted by it times beta")


class PlackettLuceSection(ObjectiveBase):
    """DPO's loss of a whole ranking."""

    ORIGIN = Origin.ANY
    name: Literal["plackett-luce"]
    beta: float = Field(0.1, gt=0)


class RrhfSection(BestOrGoldSection):
    """Rank responses to align with human feedback."""

    ORIGIN = Origin.ANY
    name: Literal["rrhf"]
    sft_weight: float = Field(1.0, ge=0)


class ProSection(BestOrGoldSection):
    """Preference ranking optimisation."""

    ORIGIN = Origin.ANY
    name: Literal["pro"]
    sft_weight: float = Field(0.05, ge=0, description="times (outputs − 1)²")


class OwnSection(ObjectiveBase):
    """A user's own loss; docs/objectives.md says what it is given."""

    name: str = Field(pattern=_OWN, description="import path module:function")
    options: dict[str, bool | int | float | str] = Field({}, description="whatever the function reads")
