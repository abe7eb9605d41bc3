"""The models of a run: the prior p, and the policy q_θ that starts as its copy.

Both are loaded here, so that scorer and learner hold the same numbers: one dtype, one quantisation, one SFT adapter.
"""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from brain_align.common.config.inputs import AdapterSection, PolicySection
from brain_align.common.errors import UserError
from brain_align.common.nn.models.adapters import (
    ALL_LINEAR,
    attach_new_adapter,
    find_adapter,
    load_adapter,
    read_adapter_config,
)
from brain_align.common.nn.models.causal_lm import load_causal_lm
from brain_align.common.nn.models.saving import check_saveable


def load_prior_model(
    policy: PolicySection, device: str | torch.device = "cpu", *, window: int | None = None
) -> PreTrainedModel | PeftModel:
    """Load the prior, frozen: the model, with its SFT adapter if there is one; for `window` see `load_causal_lm`.

    Raises:
        UserError: model or adapter cannot be loaded.
    """
    model = load_causal_lm(policy.model, policy.dtype, device, policy.quantization, window=window)
    model.requires_grad_(False)
    return load_adapter(model, find_adapter(policy.sft_adapter)) if policy.sft_adapter else model


def load_policy_model(
    policy: PolicySection, device: str | torch.device = "cpu", *, seed: int, window: int | None = None
) -> PreTrainedModel | PeftModel:
    """Load the policy as it is before the first step: equal to the prior, with trained weights marked `requires_grad`.

    The recipe's section chooses between all weights, a new adapter that changes nothing yet (its values depend on the
    seed), and a copy of the SFT adapter. For `window` see `load_causal_lm`.

    Raises:
        UserError: model or adapter cannot be loaded, or the recipe's adapter differs from the SFT adapter.
    """
    adapter = _sft_adapter(policy)
    model = load_causal_lm(policy.model, policy.dtype, device, policy.quantization, window=window)
    if policy.method == "full":
        check_saveable(model)
        return model
    if adapter is not None:
        return load_adapter(model, adapter, trainable=True)
    return attach_new_adapter(model, policy.adapter or AdapterSection(), seed)


def adapter_rank(policy: PolicySection) -> int:
    """Return the largest rank among the policy's LoRA matrices, without reading weights.

    Raises:
        UserError: the SFT adapter's configuration cannot be read, or the recipe's adapter differs from it.
    """
    adapter = _sft_adapter(policy)
    if adapter is None:
        return (policy.adapter or AdapterSection()).r
    config = read_adapter_config(adapter)
    return max([config.r, *config.rank_pattern.values()])


def _sft_adapter(policy: PolicySection) -> Path | None:
    """Return the directory of the SFT adapter, if there is one, after comparing its shape with the recipe's."""
    if policy.sft_adapter is None:
        return None
    directory = find_adapter(policy.sft_adapter)
    if policy.adapter is not None:
        _refuse_other_shape(policy.adapter, read_adapter_config(directory))
    return directory


def _refuse_other_shape(asked: AdapterSection, config: LoraConfig) -> None:
    wanted = {"r": asked.r, "alpha": asked.alpha, "targets": sorted(asked.targets)}
    targets = config.target_modules
    given = {
        "r": config.r,
        "alpha": config.lora_alpha,
        "targets": targets if isinstance(targets, str) else sorted(targets),
    }
    if asked.targets == [ALL_LINEAR]:
        del wanted["targets"]
    differing = [f"{name} {given[name]} there, {wanted[name]} here" for name in wanted if given[name] != wanted[name]]
    if differing:
        raise UserError(
            f"policy.adapter differs from policy.sft_adapter, which the policy's adapter copies "
            f"({'; '.join(differing)}); remove policy.adapter."
        )
