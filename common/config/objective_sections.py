"""The settings of each objective: one section class per family, so that a setting that a method lacks is refused.

Formulas stand with the losses (learner/objectives). Defaults are those of the papers where these name one for language
models; docs/objectives.md lists which are ours. A new objective is one class here, whose `name` is a `Literal`, and one
entry beside its loss.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from brain_align.common.config.origin import Origin
from brain_align.common.config.section import Section
from brain_align.common.schemas import HUMAN

Pairing = Literal["consecutive", "all", "best-worst"]
_OWN = r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"


class ObjectiveBase(Section):
    """The training objective. These settings belong to every objective.

    Attributes:
        ORIGIN: whose outputs it is defined on.
    """

    ORIGIN: ClassVar[Origin] = Origin.OPEN

    name: str = Field("brain", description="which objective (docs/objectives.md)")
    reward: str = Field("reward", description="the reward: a name under `scorers` or under `rewards`")
    reward_transform: Literal["none", "win-rate"] = Field(
        "none", description="win-rate (SPO): r_i becomes the mean over the group's other outputs of σ(r_i − r_j)"
    )
    temperature: float = Field(
        1.0, gt=0, description="γ, by which rewards are divided; the KL coefficient of RLHF. Smaller: sharper"
    )
    truncated: Literal["keep", "mask", "penalty"] = Field(
        "keep",
        description="outputs that were cut at sampling.max_tokens. keep: they are like others; mask: they get no "
        "weight, as if they had not been sampled; penalty: truncated_penalty is added to their rewards",
    )
    truncated_penalty: float | None = Field(
        None, lt=0, description="with truncated=penalty: added to the rewards of cut outputs, before γ"
    )

    @override
    def problems(self) -> Iterator[str]:
        if self.truncated == "penalty" and self.truncated_penalty is None:
            yield "truncated=penalty needs truncated_penalty, which is added to rewards; set it to a negative number"
        elif self.truncated != "penalty" and self.truncated_penalty is not None:
            yield f"truncated_penalty is not used with truncated={self.truncated}; remove it, or set truncated=penalty"

    @property
    def needs_gold(self) -> bool:
        """Return whether the loss reads the log-probability of the reference (gold) output."""
        return False

    def refusal_of_texts(self, texts: str) -> str | None:
        """Return why texts that were not sampled from a known proposal cannot be trained on, or None if they can."""
        if not self.ORIGIN.relies_on_proposal:
            return None
        return (
            f"objective.name={self.name} needs samples of a known proposal with their log-probabilities, which {texts} "
            f"are not; sample groups (sampler.replicas=1 or more, and objective.reward a scorer), or choose an "
            f"objective that accepts any pairs, such as dpo or ipo"
        )


class GoodnessSection(ObjectiveBase):
    """Methods that aim at the posterior p(y|x) p(G=1|x,y) / Z."""

    ORIGIN = Origin.PROPOSAL

    goodness: Literal["bradley-terry", "logistic"] = Field(
        "bradley-terry", description="log p(G=1|x,y): bradley-terry is r/γ, logistic is log σ(r/γ)"
    )


class BrainSection(GoodnessSection):
    """BRAIn (paper, equations 12-14), and BRAIn without its baseline (§9.3)."""

    name: Literal["brain", "brain-no-baseline"] = "brain"


class SpoSection(GoodnessSection):
    """BRAIn on win rates; `reward_transform: win-rate` does the same to any other objective."""

    name: Literal["spo"]
    reward_transform: Literal["win-rate"] = Field("win-rate", description="always win-rate")


class PolicyGradientSection(GoodnessSection):
    """Distributional policy gradients, with a running mean of the normaliser Z."""

    name: Literal["dpg", "gdc++"]


class ClippedSection(ObjectiveBase):
    """Policy gradients on advantages within a group, with the ratio of a whole output to q', clipped as in PPO."""

    ORIGIN = Origin.PROPOSAL

    epsilon_low: float = Field(0.2, gt=0, lt=1, description="an output's ratio is clipped below 1 − epsilon_low")
    epsilon_high: float = Field(0.2, gt=0, description="an output's ratio is clipped above 1 + epsilon_high")


class RlooSection(ClippedSection):
    """REINFORCE leave-one-out, with the KL to the prior in the reward (weight γ)."""

    name: Literal["rloo"]


class GspoSection(ClippedSection):
    """Group sequence policy optimisation: normalised advantages, ratio per token; without KL to the prior."""

    name: Literal["gspo"]
    epsilon_low: float = Field(3e-4, gt=0, lt=1, description="the ratio per token is clipped below 1 − epsilon_low")
    epsilon_high: float = Field(4e-4, gt=0, description="the ratio per token is clipped above 1 + epsilon_high")


class FixedProposalSection(GoodnessSection):
    """BRAIn with q' = p: sampled from the prior throughout (§9.5), or treated as if it had been (§9.2)."""

    ORIGIN = Origin.PRIOR
    name: Literal["brain-fixed-proposal", "dpo-sft+iw+n"]


class PairSection(ObjectiveBase):
    """Methods that compare two outputs: the higher reward wins, ties are dropped."""

    ORIGIN = Origin.ANY
    pairs: Pairing = Field(
        "consecutive",
        description="which outputs are compared. consecutive: disjoint neighbours, 16 of 32 outputs; all: every two; "
        "best-worst: one pair",
    )


class WeightedPairSection(PairSection, GoodnessSection):
    """Soft labels: both orders of a pair, weighted by the reward model's probability of each (paper, eq. 22)."""

    ORIGIN = Origin.PRIOR_BY_NAME
    name: Literal["dpo-sft+iw"]


class LogisticPairSection(PairSection):
    """Methods that turn a pair's margin into a probability, as DPO does."""

    beta: float = Field(0.1, gt=0, description="DPO's β, the scale of the log-ratios log q_θ − log p")


class HumanPairSection(LogisticPairSection):
    """DPO on human preference pairs."""

    ORIGIN = Origin.PRIOR_BY_NAME
    name: Literal["dpo"]
    reward: str = Field(HUMAN, description="the human choice, as `brain store import-pairs` stores it")


class DpoSection(LogisticPairSection):
    """DPO on pairs of the prior's outputs, ranked by the reward."""

    ORIGIN = Origin.PRIOR_BY_NAME
    name: Literal["dpo-sft"]


class SmoothedSection(LogisticPairSection):
    """Conservative and robust DPO, which expect a share `epsilon` of the labels to be wrong."""

    name: Literal["cdpo", "rdpo"]
    epsilon: float = Field(0.1, ge=0, lt=0.5, description="ε, the share of labels that are wrong; ours, tune it")


class IpoSection(PairSection):
    """Identity preference optimisation."""

    name: Literal["ipo"]
    tau: float = Field(0.1, gt=0, description="τ: the margin of log-ratios is pulled towards 1/(2τ); ours, tune it")


class SimpoSection(PairSection):
    """SimPO: length-normalised, without a reference model."""

    name: Literal["simpo"]
    beta: float = Field(2.0, gt=0, description="β, the scale of the log-probabilities per token")
    margin: float = Field(1.0, ge=0, description="the paper's γ: by how much the winner should be ahead")


class RsoSection(PairSection):
    """Statistical rejection sampling, then pairs of the accepted outputs."""

    ORIGIN = Origin.PRIOR
    name: Literal["rso"]
    accepted: int | None = Field(
        None, ge=2, description="outputs per prompt that rejection sampling keeps; default: one in 8, at least 2"
    )
    beta: float = Field(0.5, gt=0, description="β of the acceptance probability exp((r − r_max)/β)")
    gamma: float = Field(0.05, gt=0, description="scale of the log-ratios in the loss")
    loss: Literal["sigmoid-norm", "hinge-norm"] = Field(
        "sigmoid-norm", description="loss of a pair: sigmoid-norm −log σ(gamma·Δ), hinge-norm max(0, 1 − gamma·Δ)"
    )

    def accepted_of(self, outputs: int) -> int:
        """Return how many outputs of a group of this size are accepted (8 of 64 in the paper)."""
        return max(2, outputs // 8) if self.accepted is None else self.accepted

    def refusal(self, outputs: int) -> str | None:
        """Return why groups of this many outputs are too small, or None if they are not."""
        accepted = self.accepted_of(outputs)
        if accepted < outputs:
            return None
        return (
            f"objective.name=rso would accept {accepted} of {outputs} outputs per prompt, so that nothing is "
            f"rejected, and it is DPO; sample more (sampling.n), or lower objective.accepted"
        )


class SftTermSection(ObjectiveBase):
    """Methods that add −log q(y), as in supervised fine-tuning."""

    sft_on: str = Field(description="the y of the added term −log q(y)")
    sft_weight: float = Field(ge=0, description="weight of the added term −log q(y); 0: none")

    @property
    @override
    def needs_gold(self) -> bool:
        return self.sft_on == "gold" and self.sft_weight > 0


class BestOrGoldSection(SftTermSection):
    """Methods whose SFT term is of one output per group: the best, or the reference (gold)."""

    sft_on: Literal["best", "gold"] = Field(
        "best", description="the y of −log q(y). best: the output with the highest reward; gold: the reference output"
    )


class SlicSection(PairSection, BestOrGoldSection):
    """SLiC-HF: sequence likelihood calibration from human feedback."""

    name: Literal["slic"]
    margin: float = Field(1.0, gt=0, description="the paper's δ: by how many nats the winner should be ahead")
    sft_on: Literal["best", "gold"] = Field(
        "gold", description="the y of −log q(y). gold: the reference output; best: the output with the highest reward"
    )
    sft_weight: float = Field(0.1, ge=0, description="the paper's λ, the weight of −log q(y); ours, tune it")


class DpoNllSection(LogisticPairSection, SftTermSection):
    """DPO plus the negative log-likelihood of the chosen output."""

    name: Literal["dpo+nll"]
    sft_on: Literal["chosen", "gold"] = Field(
        "chosen", description="the y of −log q(y). chosen: each pair's winner; gold: the reference output"
    )
    sft_weight: float = Field(0.005, ge=0, description="the paper's η: −log q(y) is weighted by it times beta")


class PlackettLuceSection(ObjectiveBase):
    """DPO's loss for a whole ranking."""

    ORIGIN = Origin.ANY
    name: Literal["plackett-luce"]
    beta: float = Field(0.1, gt=0, description="DPO's β, the scale of the log-ratios log q_θ − log p")


class RrhfSection(BestOrGoldSection):
    """RRHF: rank responses to align with human feedback."""

    ORIGIN = Origin.ANY
    name: Literal["rrhf"]
    sft_weight: float = Field(1.0, ge=0, description="weight of −log q(y); 1 in the paper")


class ProSection(BestOrGoldSection):
    """PRO: preference ranking optimisation."""

    ORIGIN = Origin.ANY
    name: Literal["pro"]
    sft_weight: float = Field(0.05, ge=0, description="the paper's λ: −log q(y) is weighted by it times (n − 1)²")


class OwnSection(ObjectiveBase):
    """A loss of your own; docs/objectives.md specifies its arguments.

    Example:
        objective: {name: "my_module:my_loss", options: {scale: 2.0}}
    """

    name: str = Field(pattern=_OWN, description="import path, module:function")
    options: dict[str, bool | int | float | str] = Field({}, description="values for the function, by name")
