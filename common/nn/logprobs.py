"""Sequence log-probabilities of a group's outputs: the same numerics for learner and prior scorer.

Callers hand over a prompt and its outputs, and never see how they are laid out in a batch.
"""

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from common.nn.causal_lm import context_length

TokenIds = Sequence[int] | torch.Tensor
"""Token ids of one sequence: a list, or an int64 tensor [tokens] on any device."""


def group_logprobs(
    model: PreTrainedModel | PeftModel, prompt_ids: TokenIds, outputs: Sequence[TokenIds]
) -> torch.Tensor:
    """Compute log q(y|x) of each output of one prompt: the sum over its tokens, in nats, differentiable.

    An output of no tokens has log-probability 0. EOS counts where it is among an output's tokens.

    Args:
        model: the prior, or a policy; gradients follow its parameters' `requires_grad`.
        prompt_ids: at least one token.
        outputs: at least one output; all go through the model at once, see `parts_within`.

    Returns:
        [n] float32, on the model's device.

    Raises:
        ValueError: no output, no prompt token, or more tokens than the model's context.
    """
    return torch.stack([tokens.sum() for tokens in token_logprobs(model, prompt_ids, outputs)])


def token_logprobs(
    model: PreTrainedModel | PeftModel, prompt_ids: TokenIds, outputs: Sequence[TokenIds]
) -> list[torch.Tensor]:
    """Compute log q(y_t|x, y_<t) of each token of each output: what `group_logprobs` sums.

    Returns:
        n times [output tokens] float32.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    prompt = torch.as_tensor(prompt_ids, dtype=torch.long)
    completions = [torch.as_tensor(output, dtype=torch.long) for output in outputs]
    _check_lengths(base, prompt, completions)
    device = base.get_input_embeddings().weight.device
    lengths = torch.tensor([len(completion) for completion in completions])
    # Attention is causal and padding stands on the right, where no token sees it: any id will do.
    rows = pad_sequence([torch.cat([prompt, completion]) for completion in completions], batch_first=True)
    rows = rows.to(device)  # [n, t]
    # What predicts a token stands one place before it.
    hidden = _hidden_states(base, rows)[:, len(prompt) - 1 : -1]  # [n, t - prompt, h]
    counted = (torch.arange(hidden.shape[1]) < lengths[:, None]).to(device)  # [n, t - prompt]
    logits = base.get_output_embeddings()(hidden[counted])  # [tokens, v], of completions alone
    logprobs = -cross_entropy(logits.float(), rows[:, len(prompt) :][counted], reduction="none")  # [tokens]
    return list(logprobs.split(lengths.tolist()))


@torch.no_grad()
def group_logprobs_in_parts(
    model: PreTrainedModel | PeftModel, prompt_ids: TokenIds, outputs: Sequence[TokenIds], max_tokens: int
) -> torch.Tensor:
    """`group_logprobs` without gradients, in as many forward passes as `max_tokens` asks for."""
    parts = parts_within(max_tokens, len(prompt_ids), [len(output) for output in outputs])
    return torch.cat([group_logprobs(model, prompt_ids, outputs[part]) for part in parts])


def parts_within(max_tokens: int, prompt_length: int, output_lengths: Sequence[int]) -> Iterator[slice]:
    """Split a group's outputs into parts that one forward pass each has room for.

    Args:
        max_tokens: the most tokens, padding included, of a forward pass; but a part has at least one output.
        prompt_length: tokens of the prompt.
        output_lengths: tokens of each output.

    Yields:
        Slices that cover all outputs in their order; they depend on the arguments alone.
    """
    start, longest = 0, 0
    for index, length in enumerate(output_lengths):
        longest = max(longest, length)
        if index > start and (index + 1 - start) * (prompt_length + longest) > max_tokens:
            yield slice(start, index)
            start, longest = index, length
    if output_lengths:
        yield slice(start, len(output_lengths))


def _hidden_states(base: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """The decoder's last hidden states, [n, t, h]."""
    positions = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    decoder: nn.Module = base.base_model  # `.model` of a Llama, `.transformer` of a GPT-J
    return decoder(input_ids=rows, position_ids=positions, use_cache=False).last_hidden_state


def _check_lengths(base: PreTrainedModel, prompt: torch.Tensor, completions: list[torch.Tensor]) -> None:
    if not completions:
        raise ValueError("a group needs at least one output")
    if not len(prompt):
        raise ValueError("a prompt needs at least one token: the first output token is predicted from it")
    longest = len(prompt) + max(len(completion) for completion in completions)
    limit = context_length(base.config)
    if longest > limit:
        raise ValueError(f"prompt and output have {longest} tokens, the model reads {limit}")
