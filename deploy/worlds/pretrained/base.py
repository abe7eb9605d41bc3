"""The pretrained model that a world is made from: what is checked of it before anything is trained."""

from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version
from transformers import PreTrainedTokenizerBase

from brain_align.common.config.inputs import AS_THEY_ARE, OF_THE_MODEL, DataSection, PolicySection
from brain_align.common.config.run import PrepareSection
from brain_align.common.errors import UserError
from brain_align.common.nn.models.configuration import load_config
from brain_align.common.nn.prompt_encoding import TextEncoding, policy_encoding

_LEAST_TRL = "1.16"  # as the extra `prepare` in pyproject.toml
_UNUSED = "-"
_SOME_DAY = datetime(2024, 7, 26)  # for templates that write the date; the day of a preparation decides nothing


@dataclass(frozen=True)
class Base:
    """A pretrained language model with its tokenizer, and the encoding of conversations or plain texts for it."""

    source: str
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
        UserError: TRL is not installed, or too old; the base's files are missing, gated or not a language model; or it
            has no chat template although the data are conversations.
    """
    assert settings.base is not None, "the toy tasks have none"
    _require_trl()
    load_config(settings.base)
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
    return Base(settings.base, encoding)


def _require_trl() -> None:
    try:
        found = version("trl")
    except PackageNotFoundError:
        problem = "with TRL, which is not installed; install it"
    else:
        if Version(found) >= Version(_LEAST_TRL):
            return
        problem = f"with TRL {_LEAST_TRL} or later, but {found} is installed; upgrade it"
    raise UserError(
        f"prepare.base fine-tunes {problem} (pip install 'trl>={_LEAST_TRL}'), or prepare on a machine that has it, "
        f"with prepare.cache on a file system that both see."
    )
