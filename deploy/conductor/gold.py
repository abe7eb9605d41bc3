"""Gold outputs as the learner trains on them."""

from collections.abc import Callable

from brain_align.common.config.recipe import Recipe


def gold_encoder(recipe: Recipe) -> Callable[[str], list[int]] | None:
    """From a gold output's text to its token ids; None where the objective reads no gold output.

    The ids are those of the policy's tokenizer with its end of text, as the SFT model has learnt them. What is longer
    than `sampling.max_tokens` is cut off there, without an end, like a sampled output.
    """
    if not recipe.objective.needs_gold:
        return None
    from brain_align.common.nn.models.causal_lm import load_tokenizer  # transformers: only where it is needed
    from brain_align.common.nn.prompt_encoding import completion_encoding

    encode = completion_encoding(load_tokenizer(recipe.policy.tokenizer or recipe.policy.model))
    limit = recipe.sampling.max_tokens
    return lambda text: encode(text)[:limit]
