"""The judge: versions of a policy on the test prompts, by the same code for both sides, and outside of all clocks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from brain_align import sequence_logprobs
from brain_align.common.data.text_groups import text_group
from brain_align.common.nn.logprobs import TokenGroup
from brain_align.common.nn.models.adapters import load_adapter
from brain_align.common.nn.models.causal_lm import load_causal_lm, load_tokenizer
from brain_align.common.nn.models.end_tokens import end_tokens
from brain_align.common.requests import Prompt
from brain_align.common.schemas import GROUPS, batch_from_rows
from brain_align.common.statistics import win_rate
from brain_align.scorer.catalogue import build_scorer
from tests.bench.peer_cases.cases import Cell, prompts, resolved

_ROWS = 256  # sampled at a time
_TOKENS = 8192  # of a forward pass


class Judge:
    """Samples outputs of a policy for a cell's test prompts at temperature 1, and measures them.

    All policies are judged with the same seed. KL is estimated as in a run's own evaluation: the mean of
    log q(y|x) − log p(y|x) over y ~ q, both computed with the learner's numerics.
    """

    def __init__(self, cell: Cell) -> None:
        """Load the scorers, and read the prompts."""
        self._recipe = resolved(cell).recipe
        self._case = cell.case
        self._prompts = prompts(cell).test
        policy = self._recipe.policy
        self._tokenizer = load_tokenizer(policy.tokenizer or policy.model)
        self._ends = end_tokens(policy.model, self._tokenizer)
        named = [self._recipe.objective.reward, self._recipe.evaluation.truth]
        self._scorers = {
            name: build_scorer(self._recipe.scorers[name], name, policy, Path(), together=True)
            for name in named
            if name is not None
        }

    def figures(self, adapter: Path | None) -> dict[str, float]:
        """Return the figures of an adapter of the policy; None: of the prior."""
        policy = self._recipe.policy
        base = load_causal_lm(policy.model, policy.dtype, window=self._recipe.window)
        model = base if adapter is None else load_adapter(base, adapter)
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = self._sampled(model)
            groups = [(prompt.token_ids, ids) for prompt, ids in zip(self._prompts, outputs, strict=True)]
            kl = fmean(_log_ratios(model, groups)) if isinstance(model, PeftModel) else 0.0
        flat = [ids for group in outputs for ids in group]
        return {
            **self._scored(outputs),
            "kl": kl,
            "mean_tokens": fmean(map(len, flat)),
            "ended": 100 * fmean(bool(ids) and ids[-1] in self._ends for ids in flat),
        }

    def _sampled(self, model: PreTrainedModel | PeftModel) -> list[list[list[int]]]:
        """Sample the outputs of each prompt, as token ids with the EOS that ends them."""
        n, rows = self._case.outputs, []
        order = sorted(range(len(self._prompts)), key=lambda place: len(self._prompts[place].token_ids))
        per_batch = max(1, _ROWS // n)
        for start in range(0, len(order), per_batch):
            rows += self._batch(model, [self._prompts[place] for place in order[start : start + per_batch]])
        of_place = {place: rows[n * index : n * (index + 1)] for index, place in enumerate(order)}
        return [of_place[place] for place in range(len(order))]

    def _batch(self, model: PreTrainedModel | PeftModel, chosen: Sequence[Prompt]) -> list[list[int]]:
        longest = max(len(prompt.token_ids) for prompt in chosen)
        pad = self._ends[0]
        left = [[pad] * (longest - len(prompt.token_ids)) + list(prompt.token_ids) for prompt in chosen]
        mask = [[0] * (longest - len(prompt.token_ids)) + [1] * len(prompt.token_ids) for prompt in chosen]
        config = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, use_cache=True, eos_token_id=self._ends,
            pad_token_id=pad, max_new_tokens=self._recipe.sampling.max_tokens, num_return_sequences=self._case.outputs,
        )  # fmt: skip
        rows = model.generate(input_ids=torch.tensor(left), attention_mask=torch.tensor(mask), generation_config=config)
        return [self._until_end(row) for row in rows[:, longest:].tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        places = [place for place, token in enumerate(ids) if token in self._ends]
        return ids[: places[0] + 1] if places else ids

    def _scored(self, outputs: list[list[list[int]]]) -> dict[str, float]:
        """Return win rate and mean rewards; a win is strictly above the reference, by the reward of training."""
        rows = [
            text_group(str(place), prompt.text, [self._text(ids) for ids in group]) | {"gold_text": prompt.gold_text}
            for place, (prompt, group) in enumerate(zip(self._prompts, outputs, strict=True))
        ]
        batch = batch_from_rows(GROUPS, rows)
        scored = {name: scorer.score(batch).to_pylist() for name, scorer in self._scorers.items()}
        pairs = [(v, row["gold_value"]) for row in scored[self._recipe.objective.reward] for v in row["values"]]
        wins = win_rate(*zip(*pairs, strict=True))
        figures = {"win_rate": wins.rate, "ci95": wins.ci95, "ties": wins.ties, "reward": fmean(v for v, _ in pairs)}
        if (truth := self._recipe.evaluation.truth) is not None:
            figures["truth"] = fmean(value for row in scored[truth] for value in row["values"])
        return figures

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _log_ratios(model: PeftModel, groups: Sequence[TokenGroup]) -> list[float]:
    """Return log q(y|x) − log p(y|x) of every output."""
    ratios: list[float] = []
    for part in _passes(groups):
        policy = sequence_logprobs(model, part)
        with model.disable_adapter():
            prior = sequence_logprobs(model, part)
        ratios += [float(d) for q, p in zip(policy, prior, strict=True) for d in q.sums - p.sums]
    return ratios


def _passes(groups: Sequence[TokenGroup]) -> Iterator[list[TokenGroup]]:
    """Divide groups into forward passes, each of one group at least."""
    part: list[TokenGroup] = []
    tokens = 0
    for prompt, outputs in groups:
        own = len(prompt) + sum(map(len, outputs))
        if part and tokens + own > _TOKENS:
            yield part
            part, tokens = [], 0
        part.append((prompt, outputs))
        tokens += own
    if part:
        yield part
