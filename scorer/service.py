"""The scoring service: Ray actors that annotate groups."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from common.logs import redirect_output


@ray.remote
class ScorerActor:
    """One replica of one scorer."""

    def __init__(
        self, name: str, settings: dict[str, Any], policy: dict[str, Any] | None, log_path: str, threads: int
    ) -> None:
        """Load the scorer; see `build_scorer` for the first three arguments.

        Args:
            name: of the scorer.
            settings: its section of the recipe.
            policy: the policy's section, for the prior.
            log_path: the file that gets this process's output.
            threads: CPU threads to compute with.

        Raises:
            UserError: the scorer cannot be made from its settings.
        """
        redirect_output(Path(log_path))
        import torch  # only now, so that what it says at import goes to the log

        from scorer.build import build_scorer

        torch.set_num_threads(threads)
        self._scorer = build_scorer(name, settings, policy)

    def ready(self) -> dict[str, str]:
        """Answers once the scorer is loaded: its name and digest."""
        return {"name": self._scorer.name, "digest": self._scorer.digest}

    def score(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Annotate GROUPS rows; returns SCORES rows, one each."""
        return self._scorer.score(batch)
