"""The inputs of a run: its prompts, and the SFT model."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import override

from brain_align.common.config.section import Section

AS_THEY_ARE = "none"
"""The value of `data.chat_template` for prompts that are plain texts."""
OF_THE_MODEL = "model"
"""Its value for the template of the policy's tokenizer; any other is a file."""


def _or_a_path(schema: dict[str, Any]) -> None:
    section = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string", "description": section["properties"]["path"]["description"]}, section]


class PromptSource(Section):
    """The prompts of one split; a path alone may be written instead of a section.

    Example:
        data:
          train: data/train.jsonl
          validation: {path: "org/dataset", split: "train[:5%]"}
          test: {path: "org/dataset", split: test}
    """

    model_config = ConfigDict(json_schema_extra=_or_a_path)

    path: str = Field(
        description="a file (.jsonl, .jsonl.gz, .parquet, .arrow, .feather), a directory written by `save_to_disk` of "
        "Hugging Face's datasets, or the id of a dataset on the hub, followed by `@revision` unless the newest is meant"
    )
    config: str | None = Field(None, description="which configuration of a dataset on the hub that has several")
    split: str | None = Field(
        None, description="which split of a dataset that has several; on the hub it can be sliced, as in train[:95%]"
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_a_path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class DataSection(Section):
    """The prompts, and the reference (gold) outputs that evaluation compares with; docs/prompts.md.

    Example:
        data:
          train: data/train.jsonl
          validation: data/validation.jsonl
          test: data/test.jsonl
          chat_template: model
    """

    path: str | list[str] | None = Field(None, description="raw data that `prepare` reads")
    train: PromptSource = Field(description="prompts to train on")
    validation: PromptSource = Field(description="prompts that choose the best version")
    test: PromptSource = Field(description="prompts that the result is reported on")
    prompt_column: str = Field(
        "prompt", description="column of prompts: texts, or with a chat template also lists of messages"
    )
    gold_column: str | None = Field(
        "label", description="column of reference outputs: texts, or lists of messages that end with the assistant's"
    )
    chat_template: str = Field(
        AS_THEY_ARE,
        description="none: prompts are plain texts. model: prompts become conversations in the tokenizer's own "
        "template. Anything else: the file of a Jinja template",
    )
    continue_final_message: bool = Field(
        False,
        description="with a chat template: continue a prompt that ends with the assistant's turn from where that ends; "
        "otherwise such a prompt is refused",
    )
    max_prompt_tokens: int = Field(500, ge=1, description="longer prompts are skipped, and counted")

    @override
    def problems(self) -> Iterator[str]:
        if self.continue_final_message and not self.templated:
            yield "continue_final_message=true continues conversations; set chat_template to model or a file, too"

    @property
    def templated(self) -> bool:
        """Return whether prompts are conversations in a chat template."""
        return self.chat_template != AS_THEY_ARE


class AdapterSection(Section):
    """The shape of a new LoRA adapter.

    Example:
        policy: {model: path/to/sft, adapter: {r: 16, alpha: 32}}
    """

    r: int = Field(64, ge=1, le=512, description="rank of the adapter's matrices")
    alpha: float = Field(16, gt=0, description="scale: the adapter's output is multiplied by alpha / r")
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="names of the linear layers that get an adapter, or all-linear alone for all but the output layer",
    )


class PolicySection(Section):
    """The SFT model: the prior p, and the initial policy.

    Example:
        policy: {model: org/model-sft, dtype: bfloat16, quantization: nf4}
    """

    model: str = Field(
        description="directory or hub id of the SFT model, or of the base model of sft_adapter; a hub id is followed "
        "by `@revision` unless the newest is meant"
    )
    tokenizer: str | None = Field(
        None, description="directory or hub id (with `@revision`, too) of the tokenizer; default: the model's"
    )
    sft_adapter: str | None = Field(
        None,
        description="directory or hub id (with `@revision`, too) of a LoRA adapter: the prior is the model with it, "
        "frozen, and the policy's adapter starts as a copy of it",
    )
    method: Literal["lora", "full"] = Field("lora", description="what is trained: an adapter, or all weights")
    adapter: AdapterSection | None = Field(
        None, description="shape of the adapter; default: that of sft_adapter, or the defaults below"
    )
    quantization: Literal["nf4"] | None = Field(
        None, description="nf4: the frozen model in 4 bits, doubly quantised (QLoRA, bitsandbytes)"
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="type of the model's weights")

    @override
    def problems(self) -> Iterator[str]:
        if self.method == "lora":
            return
        if self.quantization is not None:
            yield f"quantization={self.quantization} freezes the weights that method=full trains; remove one of them"
        if self.adapter is not None or self.sft_adapter is not None:
            yield (
                "method=full trains the model's own weights and no adapter; remove adapter, and merge sft_adapter into "
                "the model first"
            )
