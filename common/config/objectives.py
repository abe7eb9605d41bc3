"""The recipe's objective: which section class a name stands for, read off the classes' `Literal` names."""

from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import Discriminator, Tag

from brain_align.common.config import objective_sections
from brain_align.common.config.objective_sections import ObjectiveBase, OwnSection

SECTIONS: dict[str, type[ObjectiveBase]] = {
    name: section
    for section in vars(objective_sections).values()
    if isinstance(section, type) and issubclass(section, ObjectiveBase)
    for name in get_args(section.model_fields["name"].annotation)
}
"""The section class of each objective that comes with the project."""

OBJECTIVE_NAMES = tuple(SECTIONS)


def section_tag(settings: Any) -> str | None:
    """Return the name of the section class that some settings are for, or None if no objective has their name."""
    if isinstance(settings, ObjectiveBase):
        return type(settings).__name__
    name = settings.get("name", "brain") if isinstance(settings, dict) else None
    if not isinstance(name, str):
        return None
    if ":" in name:
        return OwnSection.__name__
    return SECTIONS[name].__name__ if name in SECTIONS else None


if TYPE_CHECKING:
    ObjectiveSection = ObjectiveBase
else:
    _CLASSES = (*dict.fromkeys(SECTIONS.values()), OwnSection)
    ObjectiveSection = Annotated[
        Union[tuple(Annotated[section, Tag(section.__name__)] for section in _CLASSES)],  # noqa: UP007 - not a literal
        Discriminator(section_tag),
    ]
    """The section of one objective, by its name."""
