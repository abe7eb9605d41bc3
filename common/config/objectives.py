"""The recipe's objective: one section class a family, so that a setting that a method does not have is refused.

What the settings do is said where the losses are: learner/objectives. Defaults are those of the
papers, where these give one.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from common.config.section import Section
from common.schemas import HUMAN

Pairing = Literal["consecutive", "all", "best-worst"]
_OWN = r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"


class ObjectiveBase(Section):
    """What every objective has.

    Attributes:
        OFFLINE: its paper trains on outputs of the prior, so that the proposal is fixed unless the recipe says else.
    """

    OFFLINE: ClassVar[bool] = False

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


class GoodnessSection(ObjectiveBase):
    """What methods have that aim at the posterior p(y|x) p(G=1|x,y) / Z."""

    goodness: Literal["bradley-terry", "logistic"] = "bradley-terry"


class BrainSection(GoodnessSection):
    """BRAIn (paper, equations 12-14), without its baseline (§9.3), or with q' = p throughout (§9.5)."""

    name: Literal["brain", "brain-no-baseline", "brain-fixed-proposal"] = "brain"


class SpoSection(GoodnessSection):
    """BRAIn on win rates; `reward_transform: win-rate` does the same to any other objective."""

    name: Literal["spo"]
    reward_transform: Literal["win-rate"] = "win-rate"


class PolicyGradientSection(GoodnessSection):
    """Distributional policy gradients, with a running mean of the normaliser Z."""

    name: Literal["dpg", "gdc++"]


class WeightedListSection(GoodnessSection):
    """The last but one step of the ladder: BRAIn with q' = p."""

    OFFLINE = True
    name: Literal["dpo-sft+iw+n"]


class PairSection(ObjectiveBase):
    """What methods have that compare two outputs: the higher reward wins, ties are dropped."""

    OFFLINE = True
    pairs: Pairing = Field("consecutive", description="consecutive: disjoint neighbours, 16 of 32 outputs")


class WeightedPairSection(PairSection, GoodnessSection):
    """Soft labels: both orders of a pair, weighted by the reward model's probability of each (paper, eq. 22)."""

    name: Literal["dpo-sft+iw"]


class HumanPairSection(PairSection):
    """DPO on pairs that people chose between."""

    name: Literal["dpo"]
    reward: str = Field(HUMAN, description="the choice, as `brain store import-pairs` stores it")
    beta: float = Field(0.1, gt=0)


class DpoSection(PairSection):
    """DPO on pairs of the prior's outputs that the reward ranks."""

    name: Literal["dpo-sft"]
    beta: float = Field(0.1, gt=0)


class SmoothedSection(PairSection):
    """DPO where a share `epsilon` of the labels is taken for wrong."""

    name: Literal["cdpo", "rdpo"]
    beta: float = Field(0.1, gt=0)
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

    name: Literal["rso"]
    accepted: int = Field(8, ge=2, description="outputs a prompt that rejection sampling keeps")
    beta: float = Field(0.5, gt=0, description="of the acceptance probability exp((r − r_max)/beta)")
    gamma: float = Field(0.05, gt=0, description="scale of the log-ratios in the loss")
    loss: Literal["sigmoid-norm", "hinge-norm"] = "sigmoid-norm"


class SftTermSection(ObjectiveBase):
    """What methods have that add −log q(y) of one output, as in supervised fine-tuning."""

    sft_on: Literal["gold", "best"] = Field("best", description="best: the output of the highest reward")
    sft_weight: float = Field(ge=0)

    @property
    def needs_gold(self) -> bool:
        """See `ObjectiveBase`."""
        return self.sft_on == "gold" and self.sft_weight > 0


class SlicSection(PairSection, SftTermSection):
    """Sequence likelihood calibration from human feedback."""

    name: Literal["slic"]
    margin: float = Field(1.0, gt=0, description="the paper's delta")
    sft_on: Literal["gold", "best"] = "gold"
    sft_weight: float = Field(0.1, ge=0, description="the paper's lambda; the value is ours")


class DpoNllSection(PairSection, SftTermSection):
    """DPO and the likelihood of what was chosen."""

    name: Literal["dpo+nll"]
    beta: float = Field(0.1, gt=0)
    sft_weight: float = Field(0.005, ge=0, description="the paper's eta")


class PlackettLuceSection(ObjectiveBase):
    """DPO's loss of a whole ranking."""

    OFFLINE = True
    name: Literal["plackett-luce"]
    beta: float = Field(0.1, gt=0)


class RrhfSection(SftTermSection):
    """Rank responses to align with human feedback."""

    OFFLINE = True
    name: Literal["rrhf"]
    sft_weight: float = Field(1.0, ge=0)


class ProSection(SftTermSection):
    """Preference ranking optimisation."""

    OFFLINE = True
    name: Literal["pro"]
    sft_weight: float = Field(0.05, ge=0, description="times (outputs − 1)²")


class OwnSection(ObjectiveBase):
    """A user's own loss; docs/objectives.md says what it is given."""

    name: str = Field(pattern=_OWN, description="import path module:function")
    options: dict[str, bool | int | float | str] = Field({}, description="whatever the function reads")


_SECTIONS: dict[str, type[ObjectiveBase]] = {
    "brain": BrainSection,
    "brain-no-baseline": BrainSection,
    "brain-fixed-proposal": BrainSection,
    "dpo": HumanPairSection,
    "dpo-sft": DpoSection,
    "dpo-sft+iw": WeightedPairSection,
    "dpo-sft+iw+n": WeightedListSection,
    "rso": RsoSection,
    "slic": SlicSection,
    "rrhf": RrhfSection,
    "pro": ProSection,
    "ipo": IpoSection,
    "simpo": SimpoSection,
    "cdpo": SmoothedSection,
    "rdpo": SmoothedSection,
    "plackett-luce": PlackettLuceSection,
    "dpg": PolicyGradientSection,
    "gdc++": PolicyGradientSection,
    "spo": SpoSection,
    "dpo+nll": DpoNllSection,
}

OBJECTIVE_NAMES = tuple(_SECTIONS)
"""Of all objectives that come with the project."""

ON_PRIOR_SAMPLES = frozenset({"brain-fixed-proposal", "dpo", "dpo-sft", "dpo-sft+iw", "dpo-sft+iw+n", "rso"})
"""Methods that are defined on outputs of the prior, so that `algorithm.proposal: updated` contradicts their name."""


def section_tag(settings: Any) -> str | None:
    """The name of the section class that some settings are for; None where their name is no objective's."""
    if isinstance(settings, ObjectiveBase):
        return type(settings).__name__
    name = settings.get("name", "brain") if isinstance(settings, dict) else None
    if not isinstance(name, str):
        return None
    if ":" in name:
        return OwnSection.__name__
    return _SECTIONS[name].__name__ if name in _SECTIONS else None


ObjectiveSection = Annotated[
    Annotated[BrainSection, Tag("BrainSection")]
    | Annotated[SpoSection, Tag("SpoSection")]
    | Annotated[PolicyGradientSection, Tag("PolicyGradientSection")]
    | Annotated[WeightedListSection, Tag("WeightedListSection")]
    | Annotated[WeightedPairSection, Tag("WeightedPairSection")]
    | Annotated[HumanPairSection, Tag("HumanPairSection")]
    | Annotated[DpoSection, Tag("DpoSection")]
    | Annotated[SmoothedSection, Tag("SmoothedSection")]
    | Annotated[IpoSection, Tag("IpoSection")]
    | Annotated[SimpoSection, Tag("SimpoSection")]
    | Annotated[RsoSection, Tag("RsoSection")]
    | Annotated[SlicSection, Tag("SlicSection")]
    | Annotated[DpoNllSection, Tag("DpoNllSection")]
    | Annotated[PlackettLuceSection, Tag("PlackettLuceSection")]
    | Annotated[RrhfSection, Tag("RrhfSection")]
    | Annotated[ProSection, Tag("ProSection")]
    | Annotated[OwnSection, Tag("OwnSection")],
    Discriminator(section_tag),
]
"""The section of one objective, by its name."""
