"""Quarantine: prompts that keep bringing samplers down, and groups that keep failing in a scorer."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from brain_align.common.durable import write_file
from brain_align.common.errors import PipelineError, UserError, refuse_unreadable
from brain_align.common.requests import Purpose

SAMPLER = "sampler"
"""The service of items that could not be sampled; other items name a scorer."""

_SHARE = 0.05
_HANDFUL = 5


def most_left_out(groups: int) -> int:
    """Return how many of so many groups may fail before something else must be the cause."""
    return max(_HANDFUL, math.ceil(_SHARE * groups))


@dataclass(frozen=True)
class Item:
    """A prompt or group that is left out."""

    # purpose, round: of the request that it belongs to.
    purpose: Purpose
    round: int
    # prompt_id, group_id: of what is left out.
    prompt_id: str
    group_id: str
    service: str  # what failed: `SAMPLER`, or a scorer's name
    error: str  # the last error


class MissingValues:
    """Counts what scorers gave no value to: too much of it cannot be the texts' fault."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, Purpose, int], float] = {}  # by scorer, purpose and round; shares add up

    def add(self, scorer: str, purpose: Purpose, round_: int, share: float, size: int, error: str | None) -> None:
        """Count the share of a group's outputs that have no value; `size` is as in `Quarantine.add`.

        Raises:
            PipelineError: more than `most_left_out` groups' worth of outputs have no value.
        """
        key = (scorer, purpose, round_)
        self._groups[key] = self._groups.get(key, 0.0) + share
        if self._groups[key] > most_left_out(size):
            raise PipelineError(
                f"The scorer {scorer!r} gave no value to the outputs of {self._groups[key]:.3g} of the {size} prompts "
                f"of {purpose} round {round_}, so the cause is hardly the texts; the last reason: "
                f"{error or 'none given'}. Mend the scorer, then run the same command again."
            )


class Quarantine:
    """The items that a run leaves out, in a file of its directory.

    An item is in the file before anything continues without it, so that a resumed run leaves out the same items. To
    have items tried again, remove them or the file while the run is stopped.
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
        """The ids of the groups that are left out."""
        return {item.group_id for item in self._items}

    def prompts(self, purpose: Purpose, round_: int) -> set[str]:
        """Return the ids of prompts that are not sampled in a round, as they brought samplers down in it or before."""
        return {
            item.prompt_id
            for item in self._items
            if item.service == SAMPLER and item.purpose == purpose and item.round <= round_
        }

    def add(self, item: Item, size: int) -> None:
        """Leave an item out from now on; `size` is the number of groups of its round or evaluation.

        Raises:
            PipelineError: there are too many for prompts to be the cause; those of this round are tried again later.
        """
        alike = [one for one in self._items if (one.purpose, one.round) == (item.purpose, item.round)]
        bound = most_left_out(size)
        too_many = len(alike) >= bound
        self._items = [one for one in self._items if one not in alike] if too_many else [*self._items, item]
        write_file(self._path, json.dumps([asdict(one) for one in self._items], indent=1))
        if too_many:
            raise PipelineError(
                f"More than {bound} of the {size} prompts of {item.purpose} round {item.round} failed, so the "
                f"cause is hardly the prompts, and none of this round is left out; the last error, of {item.service}: "
                f"{item.error}"
            )


def _read(path: Path) -> list[Item]:
    try:
        return [Item(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        refuse_unreadable(path, error)
        raise UserError(f"{path} is not a list of quarantined items ({error}); restore or remove it.") from None
