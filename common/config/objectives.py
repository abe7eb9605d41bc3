"""The recipe's objective, chosen by name: which section class (objective_sections.py) a name stands for."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from brain_align.common.config.objective_sections import (
    BrainSection,
    DpoNllSection,
    DpoSection,
    FixedProposalSection,
    HumanPairSection,
    IpoSection,
    ObjectiveBase,
    OwnSection,
    PlackettLuceSection,
    PolicyGradientSection,
    ProSection,
    RrhfSection,
    RsoSection,
    SimpoSection,
    SlicSection,
    SmoothedSection,
    SpoSection,
    WeightedPairSection,
)

_SECTIONS: dict[str, type[ObjectiveBase]] = {
    "brain": BrainSection,
    "brain-no-baseline": BrainSection,
    "brain-fixed-proposal": FixedProposalSection,
    "dpo": HumanPairSection,
    "dpo-sft": DpoSection,
    "dpo-sft+iw": WeightedPairSection,
    "dpo-sft+iw+n": FixedProposalSection,
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
    | Annotated[FixedProposalSection, Tag("FixedProposalSection")]
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
