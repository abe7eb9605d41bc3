"""The prompts of a recipe, from a file or a data set of Hugging Face's `datasets`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from brain_align.common.config.inputs import DataSection, PromptSource
from brain_align.common.data.prompt_set import PromptSet
from brain_align.common.data.prompts import CheckText, Encode, PromptColumns, load_prompts
from brain_align.common.data.row_files import SUFFIXES, Row, read_rows, readable, rows_of
from brain_align.common.errors import UserError, first_line
from brain_align.common.nn.models.sources import find_source, hub_failure, hub_reason

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = 1024


def read_prompts(
    data: DataSection, source: PromptSource, encode: Encode, check_gold: CheckText | None = None
) -> PromptSet:
    """Read and tokenise the prompts of one split; refuse a source that does not exist or holds no prompts."""
    columns = PromptColumns(data.prompt_column, data.gold_column, conversations=data.templated)
    rows = _rows(source, columns.names())
    return load_prompts(rows, columns, encode, data.max_prompt_tokens, named(source), check_gold)


def named(source: PromptSource) -> str:
    """Return the name of a source for messages."""
    parts = [part for part in (source.config, source.split) if part is not None]
    return f"{source.path} ({', '.join(parts)})" if parts else source.path


def _rows(source: PromptSource, columns: tuple[str, ...]) -> Iterator[Row]:
    path = Path(source.path)
    if not path.is_dir() and (path.exists() or path.name.endswith(SUFFIXES)):
        if source.config or source.split:
            raise UserError(f"{named(source)}: a file has neither config nor split; remove them, or name a data set.")
        return read_rows(path, columns)
    dataset = _saved(source) if find_source(source.path, "The prompts").local else _from_hub(source)
    return _rows_of(source, dataset, columns)


def _rows_of(source: PromptSource, dataset: "Dataset", columns: tuple[str, ...]) -> Iterator[Row]:
    with readable(named(source)):
        yield from rows_of(dataset.with_format("arrow").iter(batch_size=_ROWS), columns)


def _saved(source: PromptSource) -> "Dataset":
    """Open a data set that `save_to_disk` wrote."""
    from datasets import DatasetDict, load_from_disk  # a second, which only data sets need

    if source.config:
        raise UserError(f"{named(source)}: a saved data set has no config; remove it.")
    try:
        found = load_from_disk(source.path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{source.path} is not a data set that `save_to_disk` wrote ({first_line(error)}); name one, or a file."
        ) from None
    if not isinstance(found, DatasetDict):
        if source.split:
            raise UserError(f"{named(source)}: this data set has no splits; remove `split`.")
        return found
    if source.split not in found:
        raise UserError(f"{named(source)}: the data set has the splits {', '.join(found)}; set `split` to one of them.")
    return found[source.split]


def _from_hub(source: PromptSource) -> "Dataset":
    hub_failure()  # asked once, before the import, which keeps whether the hub is to be left alone
    from datasets import DatasetDict, load_dataset  # as above

    place = find_source(source.path, "The prompts")
    try:
        found = load_dataset(place.name, source.config, split=source.split, revision=place.revision)
    except Exception as error:  # of the hub, of the network, or of the data
        raise UserError(
            f"The prompts: {named(source)} could not be fetched from the hub: {hub_reason(error)}"
        ) from error
    if isinstance(found, DatasetDict):
        raise UserError(f"{named(source)}: the data set has the splits {', '.join(found)}; set `split` to one of them.")
    return found
