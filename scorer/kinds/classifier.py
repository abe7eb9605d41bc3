"""Rewards from any sequence classifier of transformers with one label."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from typing_extensions import override

from brain_align.common.config.scorers import ClassifierSection
from brain_align.common.data.conversations import RenderingError, answered, rendered, turns_of
from brain_align.common.errors import UserError, listed
from brain_align.common.identity import digest
from brain_align.common.nn.models.causal_lm import load_tokenizer, refuse_incomplete
from brain_align.common.nn.models.configuration import base_of_adapter, load_any_config
from brain_align.common.nn.models.rotary import fix_rotary
from brain_align.common.nn.models.shards import check_shards
from brain_align.common.nn.models.sources import find_source
from brain_align.common.nn.token_ids import tokens_around
from brain_align.common.policies import ADAPTER_CONFIG
from brain_align.scorer.scorer import ROUNDING, Group, Kind, NoValueError, Resources, Scorer, texts_of
from brain_align.scorer.text_models.checkpoints import digest_of_loaded
from brain_align.scorer.text_models.classifier_texts import ClassifierTexts
from brain_align.scorer.text_models.encoded_texts import ValuesOfTexts, annotate_texts
from brain_align.scorer.text_models.positions import longest_text
from brain_align.scorer.text_models.text_values import TextValues

_LOG = logging.getLogger(__name__)

_SOME_OUTPUT = "An answer."

_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_IN_16_BITS = 0.1


@dataclass(frozen=True)
class WholeTexts(ValuesOfTexts):
    """Values from the classifier's own forward pass, on padded batches with a mask: for encoders, above all."""

    _model: PreTrainedModel
    _max_tokens: int

    @override
    @torch.no_grad()
    def of(self, texts: Sequence[list[int]]) -> list[float]:
        # Texts of similar length go through the model together.
        padding = padding_id(self._model)
        # A causal classifier finds its last token by the padding's id: without one, it reads one text at a time.
        width = max(map(len, texts), default=1)
        rows = 1 if padding is None else max(1, self._max_tokens // width)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        values: list[float] = []
        for start in range(0, len(texts), rows):
            part = [torch.tensor(texts[index]) for index in order[start : start + rows]]
            ids = pad_sequence(part, batch_first=True, padding_value=padding or 0).to(self._model.device)
            lengths = torch.tensor([len(text) for text in part], device=ids.device)
            mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
            values += self._model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return [value for _, value in sorted(zip(order, values, strict=True))]


@dataclass
class ClassifierScorer(Scorer):
    """r(x, y) of every output of a group, and of its gold output, from texts encoded by the classifier's tokenizer."""

    name: str
    digest: str
    _values: ValuesOfTexts
    _encoding: ClassifierTexts
    _together: bool  # see `annotate_texts`

    @override
    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        plain = not self._encoding.chat_template
        return annotate_texts(self, batch, self._texts, self._values, together=self._together, plain=plain)

    def _texts(self, group: Group) -> list[list[int] | NoValueError]:
        return [self._encode(group["prompt_text"], output) for output in texts_of(group)]

    def _encode(self, prompt: str, output: str) -> list[int] | NoValueError:
        try:
            return self._encoding.encode(prompt, output)
        except RenderingError as error:
            return NoValueError(f"the classifier cannot read the conversation: {error}")
        except Exception as error:  # noqa: BLE001 - tokenizers raise anything; the next text may be in order
            return NoValueError(f"the classifier's tokenizer cannot encode it: {type(error).__name__}: {error}")


def load_classifier(name: str, settings: ClassifierSection, resources: Resources) -> ClassifierScorer:
    """Load a classifier from a directory or the hub.

    Raises:
        UserError: it is missing or incomplete, or does not have exactly one label.
    """
    _refuse_adapter(settings.path)
    tokenizer, max_tokens = load_classifier_tokenizer(settings), resources.max_tokens
    model = _load_model(settings, resources.devices[0])
    limit = _most_tokens(name, settings, model)
    fix_rotary(model, limit)
    values: ValuesOfTexts = WholeTexts(model, max_tokens)
    padding = None
    if (decoder := _as_decoder(model, values, max_tokens)) is not None:
        values, padding = decoder, padding_id(model)
    read = settings.model_dump(include={"dtype", "chat_template", "max_tokens", "truncation"})
    files = digest_of_loaded(settings.path, model.config, tokenizer=True)
    identity = digest("classifier", files, read, max_tokens)
    encoding = ClassifierTexts(tokenizer, settings.chat_template, settings.truncation, limit, padding)
    return ClassifierScorer(name, identity, values, encoding, resources.together)


def load_classifier_tokenizer(settings: ClassifierSection) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a classifier.

    Raises:
        UserError: it is missing, or has no chat template where the recipe wants it.
    """
    tokenizer = load_tokenizer(settings.path)
    if settings.chat_template and not tokenizer.chat_template:
        raise UserError(f"The tokenizer in {settings.path} has no chat template; set chat_template=false.")
    tokenizer.truncation_side = settings.truncation
    return tokenizer


def _load_model(settings: ClassifierSection, device: str) -> PreTrainedModel:
    source = settings.path
    place = find_source(source, "The classifier")
    check_shards(source)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            place.name,
            dtype=getattr(torch, settings.dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `refuse_incomplete` names them
            **place.arguments(),
        )
    except Exception as error:  # a user's files may bring anything about in transformers' code
        raise place.failure("sequence classifier", error) from error
    refuse_incomplete(model, report, source)
    if unused := sorted(report["unexpected_keys"]):  # mask buffers of old versions, the head of a language model
        _LOG.warning("The classifier in %s has no use for %s of its files: ignored.", source, listed(unused, 8))
    _require_one_label(model.config, source)
    return model.to(device).eval().requires_grad_(False)


def _refuse_adapter(source: str) -> None:
    """Refuse an adapter alone, whose base has no trained head for its values."""
    directory = Path(source)
    if (directory / ADAPTER_CONFIG).is_file() and not (directory / "config.json").is_file():
        raise UserError(
            f"{source} holds an adapter, not a whole classifier ({ADAPTER_CONFIG}); merge it with its base"
            f"{base_of_adapter(directory)}, loaded with num_labels=1, first (PeftModel.from_pretrained(base, "
            f"{source!r}).merge_and_unload())."
        )


def _require_one_label(config: PreTrainedConfig, source: str) -> None:
    if config.num_labels == 1:
        return
    names = ", ".join(map(str, list(config.id2label.values())[:4])) + (", …" if config.num_labels > 4 else "")
    raise UserError(
        f"The classifier in {source} has {config.num_labels} labels ({names}), but a reward model has one: train it "
        f"with num_labels=1, or have a function (kind=function) load it and return the logit that is the reward."
    )


def padding_id(model: PreTrainedModel) -> int | None:
    """Return the id of the padding token; None where there is none, as with -1 in some configurations."""
    config = model.config.get_text_config()
    padding = config.pad_token_id
    return padding if isinstance(padding, int) and 0 <= padding < config.vocab_size else None


def _most_tokens(name: str, settings: ClassifierSection, model: PreTrainedModel) -> int:
    """Return the number of tokens that texts are truncated to; the model may be on the meta device.

    Raises:
        UserError: the recipe asks for more than the model reads.
    """
    most = longest_text(model)
    if most is None or settings.max_tokens <= most:
        return settings.max_tokens
    if settings.max_tokens != ClassifierSection.model_fields["max_tokens"].default:
        raise UserError(
            f"scorers.{name}.max_tokens={settings.max_tokens} is more than the {most} tokens that {settings.path} "
            f"reads; lower it, or leave it out: texts are then truncated to {most} tokens."
        )
    return most


def _check(name: str, settings: ClassifierSection) -> None:
    """Check all that needs no weights."""
    _refuse_adapter(settings.path)
    tokenizer = load_classifier_tokenizer(settings)
    config = load_any_config(settings.path)
    _require_one_label(config, settings.path)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - of a model's code; loading the weights says it in its own words
        _LOG.info("No %s could be made without weights: %s", config.model_type, error)
        return
    limit, own = _most_tokens(name, settings, model), sum(map(len, tokens_around(tokenizer)))
    if limit <= own:
        raise UserError(
            f"scorers.{name}.max_tokens={settings.max_tokens} has no room for text: the tokenizer adds {own} tokens of "
            f"its own; raise it."
        )


def _reading(settings: ClassifierSection) -> Callable[[str], object] | None:
    """Return a check of a prompt's text, which raises a NoValueError where the chat template cannot take it."""
    if not settings.chat_template:
        return None
    tokenizer = load_classifier_tokenizer(settings)

    def read(prompt: str) -> None:
        try:
            rendered(tokenizer, answered(turns_of(prompt), _SOME_OUTPUT), then="end")
        except RenderingError as error:
            raise NoValueError(str(error)) from None

    return read


def _as_decoder(model: PreTrainedModel, whole: ValuesOfTexts, max_tokens: int) -> TextValues | None:
    """Return the classifier as a causal decoder with a linear head, if that reproduces its own values; else None."""
    heads = [module for name, module in model.named_children() if name == "score" and isinstance(module, nn.Linear)]
    if not heads:
        return None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (24,), generator=generator).tolist()
    line = [token for token in ids if token != model.config.pad_token_id]
    texts = [line, line[:9], line[:9] + line[:4]]
    expected = torch.tensor([whole.of([text])[0] for text in texts])  # one at a time: no padding
    decoder = TextValues(model.base_model, heads[0], max_tokens)
    difference = (torch.tensor(decoder.of(texts)) - expected).abs().max()
    tolerance = _TOLERANCE.get(model.dtype, _TOLERANCE_IN_16_BITS) * (1 + expected.abs().max())
    return decoder if difference <= tolerance else None


KIND = Kind(
    section=ClassifierSection,
    load=load_classifier,
    check=_check,
    tolerance=lambda settings: ROUNDING[settings.dtype],
    must_answer=False,
    reads_turns=lambda settings: settings.chat_template,
    reading=_reading,
    source=lambda settings: settings.path,
)
