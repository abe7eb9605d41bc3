"""The scoring service: actors that annotate groups."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from common.logs import redirect_output

if TYPE_CHECKING:
    from scorer.scorers import Scorer


class ScorerActor:
    """One replica of one scorer."""

    def __init__(
        self, name: str, settings: dict[str, Any], policy: dict[str, Any], policies: str, log_path: str, threads: int
    ) -> None:
        """Load nothing yet: an error raised here would reach the caller as the death of the actor.

        Args:
            name: of the scorer.
            settings: its section of the recipe.
            policy: the policy's section, for the log-probabilities of prior and proposals.
            policies: where proposal versions are published.
            log_path: the file that gets this process's output.
            threads: CPU threads to compute with.
        """
        redirect_output(Path(log_path))
        self._name = name
        self._settings = settings
        self._policy = policy
        self._policies = Path(policies)
        self._threads = threads
        self._scorer: Scorer | None = None

    def ready(self) -> dict[str, str]:
        """Load the scorer, and answer with its name and digest.

        Raises:
            UserError: the scorer cannot be made from its settings.
        """
        import torch  # only now, so that what it says at import goes to the log

        from scorer.build import build_scorer

        torch.set_num_threads(self._threads)
        self._scorer = build_scorer(self._name, self._settings, self._policy, self._policies)
        return {"name": self._scorer.name, "digest": self._scorer.digest}

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Annotate GROUPS rows, after `ready`; returns SCORES rows, one each."""
        assert self._scorer is not None, "the scorer is not loaded: call ready() first"
        return self._scorer.score(batch)
