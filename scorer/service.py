"""The scoring service: actors that annotate groups."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from brain_align.common.config.recipe import Recipe
from brain_align.common.config.training import PriorSection
from brain_align.common.logs import redirect_output
from brain_align.common.schemas import PROPOSAL
from brain_align.common.system.run_place import check_place

if TYPE_CHECKING:
    from brain_align.scorer.scorer import Scorer


class ScorerActor:
    """One replica of one scorer."""

    def __init__(self, name: str, recipe: dict[str, Any], policies: str, golden: str, log_path: str) -> None:
        """Store the arguments; nothing is loaded, because an error here would look like the death of the actor.

        Proposal versions are published in `policies`; `golden` is the file of the scorer's golden values.
        """
        redirect_output(Path(log_path))
        self._name = name
        self._recipe = recipe
        self._policies = Path(policies)
        self._golden = Path(golden)
        self._scorer: Scorer | None = None

    def ready(self) -> dict[str, str]:
        """Load the scorer, run its golden self-test, and return its name and digest.

        Raises:
            UserError: the scorer cannot be loaded, or its values have changed.
            NotSharedError: this node does not see the run directory.
        """
        check_place()
        # Imported late: kinds with models import torch, whose output belongs in the log; functions need none.
        from brain_align.scorer.catalogue import build_scorer
        from brain_align.scorer.golden import check_golden

        recipe = Recipe.model_validate(self._recipe)
        section = recipe.scorer(self._name)
        together = recipe.algorithm.max_staleness > 0  # strict mode: the same seed gives the same bytes
        self._scorer = build_scorer(
            section, self._name, recipe.policy, self._policies, together=together, window=recipe.window
        )
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(section.threads)
        if self._name != PROPOSAL:  # its values change with every published version
            check_golden(self._scorer, recipe.policy if isinstance(section, PriorSection) else section, self._golden)
        return {"name": self._scorer.name, "digest": self._scorer.digest}

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return one SCORES row per GROUPS row; `ready` must have been called."""
        assert self._scorer is not None, "the scorer is not loaded: call ready() first"
        return self._scorer.score(batch)
