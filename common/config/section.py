"""The base of all sections of a recipe."""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Section(BaseModel):
    """A part of a recipe: immutable, and without unknown keys.

    Docstrings of sections, with their `Example:`, and descriptions of fields make up the settings reference.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def problems(self) -> Iterator[str]:
        """Yield one sentence, without its full stop, for each contradiction between settings of this section."""
        yield from ()

    @model_validator(mode="after")
    def _has_no_problems(self) -> Self:
        if found := list(self.problems()):
            raise ValueError("\n".join(found))  # common/config/validation.py makes a line of each
        return self
