"""The recipe's prompts: where they stand, and how they are read."""

from typing import Any

from pydantic import Field, model_validator

from brain_align.common.config.section import Section


class PromptSource(Section):
    """Where the prompts of a split stand; a path alone may be written in its place."""

    path: str = Field(
        description="file (.jsonl, .jsonl.gz, .parquet, .arrow, .feather), directory that `save_to_disk` of Hugging "
        "Face's datasets wrote, or id of a data set on the hub, `@revision` behind it where it is not the newest"
    )
    config: str | None = Field(None, description="of a dataset on the hub that has several configurations")
    split: str | None = Field(
        None, description="of a dataset with several splits; one on the hub may be cut, as in train[:95%]"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_path_alone_will_do(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class DataSection(Section):
    """Prompts, and the gold outputs that evaluation compares with."""

    path: str | list[str] | None = Field(None, description="raw data that `prepare` reads")
    train: PromptSource = Field(description="prompts to train on")
    validation: PromptSource = Field(description="prompts on which the best version is chosen")
    test: PromptSource = Field(description="prompts on which the result is reported")
    prompt_column: str = Field("prompt", description="of texts; with a chat template, also of lists of messages")
    gold_column: str | None = Field("label", description="of texts, or of messages that end in the assistant's reply")
    chat_template: str = Field(
        "none",
        description="none: prompts are texts that the model reads as they are. model: they become conversations by the "
        "tokenizer's own template. Else: file of a Jinja template",
    )
    max_prompt_tokens: int = Field(500, ge=1, description="longer prompts are skipped, counted and shown")
