"""The pretrained model that a world is made from: what is checked of it before anything is trained."""

import importlib.util
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from brain_align.common.config.inputs import AS_THEY_ARE, OF_THE_MODEL, DataSection, PolicySection
from brain_align.common.config.run import PrepareSection
from brain_align.common.errors import UserError
from brain_align.common.nn.models.configuration import load_config
from brain_align.common.nn.models.sources import find_source
from brain_align.common.nn.prompt_encoding import TextEncoding, policy_encoding
from brain_align.scorer.text_models.checkpoints import digest_of_loaded

_UNUSED = "-"
_SOME_DAY = datetime(2024, 7, 26)  # for templates that write the date; the day of a preparation decides nothing


@dataclass(frozen=True)
class Base:
    """A pretrained language model with its tokenizer, and the encoding of conversations or plain texts for it."""

    source: str
    digest: str  # of its files, or its commit on the hub
    encoding: TextEncoding

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, as its files say."""
        return self.encoding.tokenizer

    @property
    def templated(self) -> bool:
        """Whether its tokenizer has a chat template, which prompts are then rendered in."""
        return self.encoding.template is not None


def open_base(settings: PrepareSection) -> Base:
    """Check a base without reading its weights.

    Raises:
        UserError: TRL is not installed; the base's files are missing, gated or not a language model; or it has no chat
            template although the data are conversations.
    """
    assert settings.base is not None, "the toy tasks have none"
    _require_trl()
    config = load_config(settings.base)
    place = find_source(settings.base, "The base")
    data = DataSection.model_validate(
        {"train": _UNUSED, "validation": _UNUSED, "test": _UNUSED, "chat_template": AS_THEY_ARE}
    )
    policy = PolicySection(model=settings.base)
    encoding = policy_encoding(policy, data, _SOME_DAY)
    if encoding.tokenizer.chat_template:
        encoding = policy_encoding(policy, data.model_copy(update={"chat_template": OF_THE_MODEL}), _SOME_DAY)
    elif settings.kind == "hh":
        raise UserError(
            f"prepare.base={settings.base} has no chat template, but the data of prepare.kind=hh are conversations; "
            f"give a chat model, such as an Instruct version of the base, or add a chat_template.jinja to its files."
        )
    identity = _digest_of_directory(settings.base, config) if place.local else [place.name, config._commit_hash]
    return Base(settings.base, str(identity), encoding)


def _digest_of_directory(source: str, config: object) -> str:
    if not any(any(Path(source).glob(pattern)) for pattern in ("*.safetensors", "*.bin")):
        raise UserError(
            f"prepare.base={source} holds no weights (*.safetensors or *.bin); give the directory of the whole model, "
            f"or its hub id."
        )
    return digest_of_loaded(source, config, tokenizer=True)


def _require_trl() -> None:
    if importlib.util.find_spec("trl") is None:
        raise UserError(
            "prepare.base fine-tunes with TRL, which is not installed; install it (pip install 'trl>=1.16'), or "
            "prepare on a machine that has it, with prepare.cache on a file system that both see."
        )
