"""The division of pairs by prompt: held out, for the reward model, for the gold judge; and the run's prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from brain_align.common.config.run import PrepareSection
from brain_align.common.data.conversations import turns_of
from brain_align.common.data.prompts import RefusedPromptError
from brain_align.common.errors import UserError
from brain_align.common.nn.prompt_encoding import TextEncoding
from brain_align.deploy.worlds.corpus import SPLIT_SIZES
from brain_align.deploy.worlds.pretrained.pairs import Pair, Pairs
from brain_align.deploy.worlds.pretrained.report import listed

_VALIDATION = SPLIT_SIZES["validation"] / sum(SPLIT_SIZES.values())


@dataclass(frozen=True)
class Splits:
    """Pairs and prompts; no prompt is in two of held-out, reward and gold."""

    held_out: list[Pair]  # one for each prompt
    reward: list[Pair]
    gold: list[Pair]
    prompts: dict[str, list[Pair]]  # train: of the reward's and the gold's pairs; validation and test: of the held-out
    left_out: dict[str, int] = field(default_factory=dict)  # prompts, by reason

    def sizes(self) -> dict[str, Any]:
        """Return the numbers of pairs and prompts, for world.json."""
        pairs = {"held out": len(self.held_out), "reward": len(self.reward), "gold": len(self.gold)}
        prompts = {split: len(rows) for split, rows in self.prompts.items()}
        return {"pairs": pairs, "prompts": prompts, "prompts left out": self.left_out}


def split_pairs(found: Pairs, settings: PrepareSection, encoding: TextEncoding, seed: int) -> Splits:
    """Divide pairs by prompt: held out as many as the settings ask for, the rest in two halves.

    Raises:
        UserError: there are too few pairs, or no prompt is short enough for one of the splits.
    """
    random = Random(seed)
    by_prompt: dict[str, list[Pair]] = {}
    for pair in found.pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    prompts = sorted(by_prompt)
    random.shuffle(prompts)
    held_out, rest = prompts[: settings.held_out_pairs], prompts[settings.held_out_pairs :]
    reward, gold = (
        _drawn([pair for prompt in rest[half::2] for pair in by_prompt[prompt]], settings.reward.pairs, random)
        for half in (0, 1)
    )
    _require_enough(found, len(by_prompt), [reward, gold], settings)
    sieve = _Sieve(encoding, settings)
    suited = sieve.suited(by_prompt[prompt][0] for prompt in held_out)
    validation = min(SPLIT_SIZES["validation"], round(_VALIDATION * len(suited)))
    splits = {
        "train": sieve.suited(by_prompt[prompt][0] for prompt in rest),
        "validation": suited[:validation],
        "test": suited[validation : validation + SPLIT_SIZES["test"]],
    }
    if empty := [split for split, rows in splits.items() if not rows]:
        left_out = listed(sieve.left_out, "nothing was left out")
        raise UserError(
            f"No prompt of data.path is left for {' and '.join(empty)} ({left_out}); raise "
            f"prepare.max_prompt_tokens or prepare.max_output_tokens, or add data."
        )
    return Splits([random.choice(by_prompt[prompt]) for prompt in held_out], reward, gold, splits, sieve.left_out)


def prompt_row(pair: Pair, *, conversation: bool) -> dict[str, Any]:
    """Return a row of `prompts/SPLIT.jsonl`: `prompt` (messages, of a conversation), `label`, `chosen`, `rejected`."""
    prompt = turns_of(pair.prompt) if conversation else pair.prompt
    return {"prompt": prompt, "label": pair.chosen, "chosen": pair.chosen, "rejected": pair.rejected}


def _drawn(pairs: list[Pair], limit: int | None, random: Random) -> list[Pair]:
    return random.sample(pairs, len(pairs))[:limit]


def _require_enough(found: Pairs, prompts: int, halves: Sequence[list[Pair]], settings: PrepareSection) -> None:
    least = min(map(len, halves))
    if least >= settings.reward.batch:
        return
    unusable = f"; unusable: {listed(found.dropped, '')}" if found.dropped else ""
    raise UserError(
        f"data.path holds {len(found.pairs)} usable pairs of {prompts} prompts{unusable}. With prepare.held_out_pairs="
        f"{settings.held_out_pairs}, {least} are left for each reward model, fewer than a step takes (prepare.reward."
        f"batch={settings.reward.batch}); add data, or lower held_out_pairs."
    )


@dataclass
class _Sieve:
    """Keeps prompts that policy and limits allow, and counts the others."""

    encoding: TextEncoding
    settings: PrepareSection
    left_out: dict[str, int] = field(default_factory=dict)

    def suited(self, pairs: Iterable[Pair]) -> list[Pair]:
        return [pair for pair in pairs if self._lets_pass(pair)]

    def _lets_pass(self, pair: Pair) -> bool:
        reason = self._objection(pair)
        if reason is not None:
            self.left_out[reason] = self.left_out.get(reason, 0) + 1
        return reason is None

    def _objection(self, pair: Pair) -> str | None:
        try:
            prompt, output = self.encoding.prompts([pair.prompt])[0], self.encoding.completion(pair.chosen)
        except RefusedPromptError:
            return "refused by the chat template or the model's vocabulary"
        if len(prompt) > self.settings.max_prompt_tokens:
            return "longer than max_prompt_tokens"
        return (
            "with a reference longer than max_output_tokens" if len(output) > self.settings.max_output_tokens else None
        )
