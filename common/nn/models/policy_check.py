"""What can be known of a policy before its weights are read: whether it can be trained, sampled from and written."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from brain_align.common.config.inputs import AdapterSection, PolicySection
from brain_align.common.errors import UserError
from brain_align.common.nn.models.adapters import checked_targets
from brain_align.common.nn.models.configuration import has_other_parts, load_config
from brain_align.common.nn.models.policy_model import adapter_rank
from brain_align.common.nn.models.saving import check_saveable, unsaveable


def check_policy(policy: PolicySection, *, sampled: bool) -> list[str]:
    """Check a policy without its weights; return notes on what will not be possible.

    Args:
        policy: the recipe's section.
        sampled: whether samplers load it, for which quantised weights are written.

    Raises:
        UserError: its adapter or its weights are such as cannot be trained, sampled from or written.
    """
    if policy.method == "lora":
        adapter_rank(policy)  # reads the configuration of an SFT adapter
    if sampled and has_other_parts(policy.model, config := load_config(policy.model)):
        raise UserError(
            f"{policy.model} holds more than a text model ({config.model_type}), and samplers would load all of it, "
            f"under other names than the learner; give a directory with the text model alone."
        )
    model = _without_weights(policy.model)
    if model is None:
        return []
    if policy.method == "lora" and policy.sft_adapter is None:
        checked_targets(model, (policy.adapter or AdapterSection()).targets)
    if policy.method == "full" or (policy.quantization is not None and sampled):
        check_saveable(model)
    reason = unsaveable(model)
    return [] if reason is None else [f"note: {reason}: export the adapter, without --merge"]


def _without_weights(source: str) -> PreTrainedModel | None:
    """Return a model whose parameters have no values; None where transformers cannot make it so."""
    config = load_config(source)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # noqa: BLE001 - loading says what is wrong; some models compute while they are made
        return None
    model.name_or_path = source
    return model
