"""What a recipe's `prepare:` section says about the world to build."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelSize(BaseModel):
    """Size of one small transformer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int = Field(2, ge=1, le=64, description="transformer layers")
    width: int = Field(128, ge=32, le=4096, multiple_of=32, description="hidden size")
    heads: int = Field(2, ge=1, le=64, description="attention heads")
    context: int = Field(256, ge=32, le=4096, description="longest sequence, in tokens")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(
                f"width={self.width} over heads={self.heads} leaves no head size that is a multiple of 4; "
                f"use e.g. heads={max(1, self.width // 64)}"
            )
        return self
