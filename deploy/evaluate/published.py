"""Adapters and models that no run has published, as versions that samplers load and check like any other.

A version lies in `DIGEST/v000000/`, named by its files; its probe is computed here, by the prior's own code.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brain_align.common.config.recipe import Recipe
from brain_align.common.errors import UserError
from brain_align.common.identity import digest, digest_files
from brain_align.common.policies import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PolicyRegistry, Probe, ProposalVersion

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")


@dataclass(frozen=True)
class Published:
    """A version, and the recipe whose samplers load it."""

    recipe: Recipe
    version: ProposalVersion


def publish_adapter(recipe: Recipe, directory: Path, root: Path) -> Published:
    """Publish the adapter in a directory, which is the recipe's `policy.sft_adapter`, unless that was done before."""
    names = [ADAPTER_CONFIG, ADAPTER_WEIGHTS]

    def write(target: Path) -> None:
        for name in names:
            shutil.copyfile(directory / name, target / name)

    return _published(recipe, directory, names, write, root)


def publish_model(recipe: Recipe, root: Path) -> Published:
    """Publish a whole model, the recipe's `policy.model`, by links to its files, unless that was done before."""
    directory = _model_directory(recipe.policy.model)
    names = sorted({file.name for pattern in _WEIGHTS for file in directory.glob(pattern)})
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"The model in {recipe.policy.model} has no .safetensors files, from which samplers load weights; write it "
            f"with a newer transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(DIR)."
        )

    def write(target: Path) -> None:
        for name in names:
            (target / name).symlink_to((directory / name).resolve())

    return _published(recipe, directory, names, write, root)


def _published(
    recipe: Recipe, directory: Path, names: Sequence[str], write: Callable[[Path], None], root: Path
) -> Published:
    policy = recipe.policy
    place = digest(digest_files(directory, list(names)), policy.model, policy.dtype, policy.quantization)
    registry = PolicyRegistry(root / place)
    if not registry.is_published(0):
        registry.publish(0, 0, write, _probe(recipe))
    return Published(recipe, registry.verify(0))


def _model_directory(model: str) -> Path:
    from brain_align.common.nn.models.sources import find_source, hub_failure  # transformers' hub library

    place = find_source(model, "The model")
    if place.local:
        return Path(model)
    from huggingface_hub import snapshot_download

    offline = hub_failure() is not None
    try:
        return Path(
            snapshot_download(
                place.name, revision=place.revision, allow_patterns=list(_WEIGHTS), local_files_only=offline
            )
        )
    except Exception as error:  # of the hub, or of the network
        raise place.failure("model", error) from error


def _probe(recipe: Recipe) -> Probe:
    """Compute what samplers must reproduce; loads the weights into this process's memory, and drops them."""
    from transformers.utils import logging as transformers_logging  # torch and transformers

    from brain_align.common.nn.logprobs import SequenceLogprobs
    from brain_align.common.nn.models.policy_model import load_prior_model
    from brain_align.learner.publishing.publisher import make_probe

    transformers_logging.disable_progress_bar()
    logprobs = SequenceLogprobs(load_prior_model(recipe.policy, window=recipe.window))
    logprobs.decoder.pad_unless_exact()
    return make_probe(logprobs, logprobs.decoder.config)
