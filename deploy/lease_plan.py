"""How rounds and evaluations are cut into leases."""

from collections.abc import Sequence
from pathlib import Path

from common.identity import group_id, seed_from
from common.leases import Lease, Prompt, Purpose


class LeasePlan:
    """Cuts rounds and evaluations into leases; the same cut after every restart.

    Args:
        run_id: of the run that the groups belong to.
        seed: of the run.
        lease_prompts: prompts a lease.
        policies: where the run's versions are published.
        alone: whether each lease is sampled on its own (`Lease.alone`).
    """

    def __init__(self, run_id: str, seed: int, lease_prompts: int, policies: Path, *, alone: bool = True) -> None:
        self._run_id = run_id
        self._seed = seed
        self._lease_prompts = lease_prompts
        self._policies = str(policies)
        self._alone = alone

    def leases(self, purpose: Purpose, round_: int, version: int, n: int, prompts: Sequence[Prompt]) -> list[Lease]:
        """Leases for all prompts, in their order."""
        cut = range(0, len(prompts), self._lease_prompts)
        return [
            self._lease(purpose, round_, version, n, index, prompts[start : start + self._lease_prompts])
            for index, start in enumerate(cut)
        ]

    def _lease(
        self, purpose: Purpose, round_: int, version: int, n: int, index: int, prompts: Sequence[Prompt]
    ) -> Lease:
        lease_id = f"{purpose}-{round_:04d}-{index:04d}"
        ids = tuple(group_id(f"{self._run_id}/{purpose}", prompt.prompt_id, round_, version) for prompt in prompts)
        seed = seed_from("lease", self._seed, lease_id)
        return Lease(lease_id, purpose, round_, version, n, seed, ids, tuple(prompts), self._policies, self._alone)
