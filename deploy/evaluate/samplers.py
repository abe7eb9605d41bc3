"""The samplers of an evaluation: one engine for all candidates that share a base model, one engine after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from brain_align.common.config.recipe import Recipe
from brain_align.common.identity import digest
from brain_align.common.policies import ProposalModel
from brain_align.common.requests import SampleRequest
from brain_align.deploy.actors.pool import Pool
from brain_align.deploy.evaluate.plan import Series
from brain_align.deploy.run.delivery import delivery_of, proposal_model
from brain_align.deploy.run.directory import RunDirectory


@dataclass
class Engine:
    """Samplers of one base model, and what they are to sample."""

    recipe: Recipe
    model: ProposalModel
    directory: RunDirectory  # of logs, and of a quantised model's weights
    requests: list[SampleRequest]

    def pool(self) -> Pool:
        """Return its samplers, not yet started."""
        from brain_align.deploy.services.make_services import make_services  # Ray

        return make_services(self.recipe, self.directory, self.model, []).samplers


def engines(series: Sequence[Series], requests: Sequence[Sequence[SampleRequest]], home: RunDirectory) -> list[Engine]:
    """Return the engines that sample what is lacking (`requests`, by series); none for series that lack nothing.

    Raises:
        UserError: a model or an adapter cannot be loaded.
    """
    found: dict[str, Engine] = {}
    for one, wanted in zip(series, requests, strict=True):
        if not wanted:
            continue
        recipe = one.candidate.recipe
        delivery = delivery_of(recipe)
        base = recipe.policy.model_dump(mode="json", exclude={"sft_adapter", "adapter"})
        key = digest(base, delivery.merged)[:12]
        directory = RunDirectory(home.root / "samplers" / key)
        model = proposal_model(recipe, directory, delivery)
        if (known := found.get(key)) is None:
            found[key] = Engine(recipe, model, directory, list(wanted))
        else:
            ranks = [rank for rank in (known.model.adapter_rank, model.adapter_rank) if rank is not None]
            known.model = replace(known.model, adapter_rank=max(ranks, default=None))
            known.requests += wanted
    return list(found.values())
