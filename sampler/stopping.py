"""Stop strings: an output ends with the token that completes one."""

from collections.abc import Callable, Sequence

from brain_align.sampler.engine.data import Completion

Decode = Callable[[list[int]], str]


def cut_at_stop(completion: Completion, stop: Sequence[str], decode: Decode) -> Completion:
    """Cut an output behind the token that completes the first stop string.

    Tokens are never split: the output holds the whole stop string, and whatever else its last token stands for. So ids
    and log-probabilities are cut at the same place, and their log-probability is that of what is stored.

    Args:
        completion: the output.
        stop: the stop strings.
        decode: token ids to the text in which they are looked for; with special tokens, which they may be made of.

    Returns:
        The output, with finish reason "stop" where it was cut.
    """
    if not stop or not _has_stop(decode(completion.token_ids), stop):
        return completion
    without, including = 0, len(completion.token_ids)  # the first `including` tokens have a stop string
    while including - without > 1:
        middle = (without + including) // 2
        if _has_stop(decode(completion.token_ids[:middle]), stop):
            including = middle
        else:
            without = middle
    ids, logprobs = completion.token_ids[:including], completion.token_logprobs[:including]
    return Completion(ids, logprobs, "stop")


def _has_stop(text: str, stop: Sequence[str]) -> bool:
    return any(one in text for one in stop)
