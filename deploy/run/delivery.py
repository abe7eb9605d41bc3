"""How versions get into a run's samplers, and the model that these start with."""

from dataclasses import dataclass
from typing import Literal

from brain_align.common.config.recipe import Recipe
from brain_align.common.durable import new_directory
from brain_align.common.errors import PipelineError, UserError
from brain_align.common.policies import ProposalModel
from brain_align.deploy.run.directory import RunDirectory

Way = Literal["files", "merged", "transfer"]
"""What `sampler.delivery` can be once `auto` is decided."""


@dataclass(frozen=True)
class DeliveryChoice:
    """The way in which a run's versions get into its samplers, chosen for this start; a resumed run may differ."""

    way: Way
    reason: str
    notes: tuple[str, ...] = ()  # for the user

    @property
    def merged(self) -> bool:
        """Whether samplers add adapters to the model's weights."""
        return self.way == "merged"

    def sentence(self) -> str:
        """Return way and reason, as summary.json and the log have them."""
        return f"{self.way}: {self.reason}"


def delivery_of(recipe: Recipe) -> DeliveryChoice:
    """Decide how versions get into the samplers of a recipe that has some: what `sampler.delivery=auto` stands for.

    Adapters are merged where vLLM has none for the model, however many versions are sampled from at a time, and on CPUs
    where that is one version at a time.

    Raises:
        UserError: the recipe asks for merging, and the SFT adapter cannot be merged.
    """
    asked = recipe.sampler.delivery
    obstacle = _obstacle_to_merging(recipe)
    if asked == "merged" and obstacle:
        raise UserError(f"sampler.delivery=merged: {obstacle}, and only linear layers are merged; remove that setting.")
    if recipe.policy.method == "full" or asked not in ("auto", "merged"):
        return DeliveryChoice("files", "whole models") if asked == "auto" else _as_asked(asked)
    if asked == "merged":
        return _as_asked(asked, *_cost_of_merging(recipe))
    if obstacle:
        return _chosen(recipe, "files", obstacle)
    on_cpu = recipe.sampler.gpus == 0
    if on_cpu and recipe.algorithm.strict:
        return _chosen(recipe, "merged", "samplers run on CPUs, where that is several times faster")
    way, why = _as_vllm_can(recipe)
    notes = (
        f"note: on CPUs vLLM computes with adapters several times slower than with merged weights; sampler.delivery="
        f"merged is faster also with algorithm.max_staleness={recipe.algorithm.max_staleness}, though samplers then "
        f"finish the requests of one version before they load the next",
    )
    return _chosen(recipe, way, why, *(notes if on_cpu and way == "files" else ()))


def _obstacle_to_merging(recipe: Recipe) -> str | None:
    """Return why the policy's adapter cannot be merged, without reading its weights."""
    policy = recipe.policy
    if policy.method == "full" or policy.sft_adapter is None:
        return None
    from brain_align.common.nn.models.adapters import find_adapter, unmergeable  # torch

    return unmergeable(find_adapter(policy.sft_adapter))


def _as_vllm_can(recipe: Recipe) -> tuple[Way, str]:
    """Return `merged` where vLLM has no adapters for the model, `files` elsewhere, and the reason.

    vLLM goes by the whole model's configuration: that of the text model alone may name no class, or another one.
    """
    from brain_align.common.nn.models.configuration import load_any_config  # torch and transformers
    from brain_align.sampler.engine.adapter_support import supports_adapters

    config = load_any_config(recipe.policy.model)
    architectures = config.architectures or []
    try:
        if not supports_adapters(architectures):
            return "merged", f"vLLM has no adapters for {', '.join(architectures) or f'{config.model_type} models'}"
    except PipelineError as error:
        return "files", f"{error} If it has none, set sampler.delivery=merged"
    return "files", "vLLM computes with adapters beside the model, several versions at a time"


def _as_asked(way: Way, *notes: str) -> DeliveryChoice:
    return DeliveryChoice(way, f"sampler.delivery={way}", notes)


def _chosen(recipe: Recipe, way: Way, why: str, *notes: str) -> DeliveryChoice:
    merged = way == "merged"
    what = "adapters are merged into the model's weights" if merged else "adapters stay beside the model"
    cost = _cost_of_merging(recipe) if merged else ()
    return DeliveryChoice(way, why, (f"samplers: {what} (sampler.delivery=auto: {why})", *cost, *notes))


def _cost_of_merging(recipe: Recipe) -> tuple[str, ...]:
    """Return a note where samplers hold one version at a time although a run samples from several."""
    if recipe.algorithm.strict:
        return ()
    alone = "" if recipe.sampler.replicas > 1 else "; meanwhile this run's only sampler samples nothing new"
    return (
        f"note: with merged weights a sampler holds one version at a time; with algorithm.max_staleness="
        f"{recipe.algorithm.max_staleness} it finishes all its requests of one version before it loads the next (drain)"
        f"{alone}",
    )


def proposal_model(recipe: Recipe, directory: RunDirectory, delivery: DeliveryChoice | None) -> ProposalModel:
    """Return the model that samplers, if there are any, start with, before the first version is published.

    vLLM has no kernels for bitsandbytes' 4 bits. For a quantised policy it is given the quantised weights in the
    policy's dtype, written into the run directory, so that sampler and learner still evaluate the same model.
    A model that cannot be loaded and an SFT adapter whose configuration cannot be read are refused.
    """
    policy = recipe.policy
    if not recipe.sampler.replicas:
        return ProposalModel(policy.model, None)
    from brain_align.common.nn.models.policy_model import adapter_rank  # torch: only where groups are sampled
    from brain_align.common.nn.models.saving import load_dequantized, save_causal_lm

    merged = delivery is not None and delivery.merged
    rank = adapter_rank(policy) if policy.method == "lora" else None
    if policy.quantization is None:
        return ProposalModel(policy.model, rank, merged)
    if not directory.dequantized.exists():
        with new_directory(directory.dequantized) as target:
            save_causal_lm(load_dequantized(policy.model, policy.dtype), target)
    return ProposalModel(str(directory.dequantized), rank, merged)
