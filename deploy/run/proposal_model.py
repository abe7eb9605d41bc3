"""The model that the samplers start with, before the first version is published."""

from brain_align.common.config.inputs import PolicySection
from brain_align.common.durable import new_directory
from brain_align.common.nn.models.policy_model import adapter_rank
from brain_align.common.nn.models.saving import load_dequantized, save_causal_lm
from brain_align.common.policies import ProposalModel
from brain_align.deploy.run.directory import RunDirectory


def proposal_model(policy: PolicySection, directory: RunDirectory) -> ProposalModel:
    """The policy's model; of a quantised one, a copy for the samplers is written into the run directory first.

    vLLM has no kernels for bitsandbytes' 4 bits. It is given the quantised weights in the policy's dtype, so that
    sampler and learner still evaluate the same model.

    Raises:
        UserError: the model cannot be loaded, or the SFT adapter's configuration not be read.
    """
    rank = adapter_rank(policy) if policy.method == "lora" else None
    if policy.quantization is None:
        return ProposalModel(policy.model, rank)
    if not directory.dequantized.exists():
        with new_directory(directory.dequantized) as target:
            save_causal_lm(load_dequantized(policy.model, policy.dtype), target)
    return ProposalModel(str(directory.dequantized), rank)
