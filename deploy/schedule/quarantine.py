"""What a run goes on without: prompts that keep killing samplers, and groups that keep failing in a scorer."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from brain_align.common.durable import write_file
from brain_align.common.errors import PipelineError, UserError
from brain_align.common.requests import Purpose

SAMPLER = "sampler"
"""The service of items that were never sampled; other items have a scorer's name there."""

_SHARE = 0.05
_HANDFUL = 5


def most_left_out(groups: int) -> int:
    """How many of so many groups may fail before the cause is hardly the groups."""
    return max(_HANDFUL, math.ceil(_SHARE * groups))


@dataclass(frozen=True)
class Item:
    """One prompt, or one group, that is left out.

    Attributes:
        purpose, round: of the request that it belongs to.
        prompt_id, group_id: what is left out.
        service: what it made fail: `SAMPLER`, or a scorer's name.
        error: how.
    """

    purpose: Purpose
    round: int
    prompt_id: str
    group_id: str
    service: str
    error: str


class Quarantine:
    """The items that a run leaves out, in one file of its directory.

    An item is in the file before anything goes on without it, so that a resumed run leaves out the same ones. Removing
    the file, or an entry, while the run is stopped has them tried again.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._items = _read(path)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def groups(self) -> set[str]:
        """Ids of the groups that are left out."""
        return {item.group_id for item in self._items}

    def prompts(self, purpose: Purpose, round_: int) -> set[str]:
        """Ids of the prompts that are not sampled in a round: those that have brought down samplers in it or before."""
        return {
            item.prompt_id
            for item in self._items
            if item.service == SAMPLER and item.purpose == purpose and item.round <= round_
        }

    def add(self, item: Item, size: int) -> None:
        """Leave something out from now on.

        Args:
            item: the prompt or group.
            size: of its round or evaluation, in groups.

        Raises:
            PipelineError: they are too many for the prompts to be the cause; those of this round are tried again then.
        """
        alike = [one for one in self._items if (one.purpose, one.round) == (item.purpose, item.round)]
        bound = most_left_out(size)
        too_many = len(alike) >= bound
        self._items = [one for one in self._items if one not in alike] if too_many else [*self._items, item]
        write_file(self._path, json.dumps([asdict(one) for one in self._items], indent=1))
        if too_many:
            raise PipelineError(
                f"More than {bound} of the {size} prompts of {item.purpose} round {item.round} failed, so that the "
                f"cause is hardly the prompts, and none of this round is left out; the last error, of {item.service}: "
                f"{item.error}"
            )


def _read(path: Path) -> list[Item]:
    try:
        return [Item(**row) for row in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no list of quarantined items ({error}); restore it, or remove it.") from None
