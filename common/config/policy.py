"""The policy: the SFT model that is the prior, and what of it is trained."""

from typing import Literal, Self

from pydantic import Field, model_validator

from brain_align.common.config.section import Section


class AdapterSection(Section):
    """A new LoRA adapter."""

    r: int = Field(64, ge=1, le=512)
    alpha: float = Field(16, gt=0)
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )


class PolicySection(Section):
    """The SFT model: the prior p, and the starting point of the policy q."""

    model: str = Field(description="HF directory or hub id of the SFT model, or of the base of sft_adapter")
    tokenizer: str | None = Field(None, description="HF directory or hub id; default: the model's")
    sft_adapter: str | None = Field(
        None,
        description="directory or hub id of a LoRA adapter: the prior is the model with it, frozen, and the policy's "
        "adapter starts as its copy",
    )
    method: Literal["lora", "full"] = Field("lora", description="what is trained: an adapter, or all weights")
    adapter: AdapterSection | None = Field(
        None, description="shape of the adapter; default: that of sft_adapter, else AdapterSection's own defaults"
    )
    quantization: Literal["nf4"] | None = Field(
        None, description="nf4: the frozen model in 4 bits, doubly quantised (QLoRA, bitsandbytes)"
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @model_validator(mode="after")
    def _trains_something_that_can_be_trained(self) -> Self:
        if self.method == "lora":
            return self
        if self.quantization is not None:
            raise ValueError(
                f"quantization={self.quantization} freezes the weights that method=full trains; remove one of them"
            )
        if self.adapter is not None or self.sft_adapter is not None:
            raise ValueError(
                "method=full trains the model's own weights and no adapter; remove adapter, and merge sft_adapter into "
                "the model first"
            )
        return self
