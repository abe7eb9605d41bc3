"""The scorers whose values a store has: a name has one scorer."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from brain_align.common.errors import UserError
from brain_align.common.schemas import PRIOR, PROPOSAL
from brain_align.common.store.table.summary_rows import ScorerSummary


def scorers_of(batch: pa.RecordBatch) -> set[tuple[str, str]]:
    """Return (name, digest) of the scorers of some SCORES rows."""
    return set(zip(batch["scorer"].to_pylist(), batch["scorer_digest"].to_pylist(), strict=True))


class ScorerDigests:
    """The digests of each name in an opening, looked up when first needed; one with nothing but nulls is not bound."""

    def __init__(self, root: str, look: Callable[[], Sequence[ScorerSummary]]) -> None:
        self._root = root
        self._look = look
        self._known: dict[str, set[str]] | None = None

    def forget(self) -> None:
        """Look them up again when they are needed next."""
        self._known = None

    def of(self, scorer: str) -> set[str]:
        """Return the digests of a name, to which others may be added."""
        if self._known is None:
            self._known = {}
            for found in self._look():
                if found.mean is not None:
                    self._known.setdefault(found.name, set()).add(found.digest)
        return self._known.setdefault(scorer, set())

    def refuse_another(self, batch: pa.RecordBatch) -> None:
        """Make sure that two different scorers do not share a name.

        Raises:
            UserError: the store has values of another scorer under the name of one in these SCORES rows.
        """
        for name, digest in scorers_of(batch):
            known = self.of(name)
            if known and digest not in known:
                # The names of log-probability scorers are fixed, so another name is not an option for them.
                other_name = ", or score the groups under another name (brain store rescore --scorer NEW scorers.NEW.…)"
                raise UserError(
                    f"The sample store {self._root} has values of another scorer under the name {name!r} (digest "
                    f"{', '.join(sorted(known))}; this one's is {digest}), and a name has one scorer; restore the "
                    f"files and settings of the former one, or start another run"
                    f"{'' if name in (PRIOR, PROPOSAL) else other_name}."
                )
