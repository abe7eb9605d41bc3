"""TRAIN_BATCH record batches as tensors, converted once."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch

from brain_align.common.config.objective_sections import ObjectiveBase
from brain_align.common.errors import PipelineError
from brain_align.common.identity import seed_from
from brain_align.learner.objectives.masked import at_least
from brain_align.learner.objectives.values import GroupValues

Completion = torch.Tensor  # [tokens] int64


@dataclass(frozen=True)
class GroupBatch:
    """b groups of up to n outputs; groups with fewer outputs have invalid slots at the end.

    Attributes:
        group_ids: b names, for errors.
        proposal_versions: [b] int64
        prompts: b times [prompt tokens] int64
        completions: b lists of at most n times [completion tokens] int64
        lengths: completion tokens, 0 where there is no output.  # [b, n] int64
        prior_logprobs: log p; NaN where missing.  # [b, n] float32
        sampler_logprobs: log q' as the sampler computed it; NaN where there is no output.  # [b, n] float32
        proposal_logprobs: log q' as the objective uses it; NaN where missing.  # [b, n] float32
        rewards: NaN where missing.  # [b, n] float32
        finished: false where an output was cut at `sampling.max_tokens`, or there is none.  # [b, n] bool
        complete: whether there is an output, and none of its values is missing.  # [b, n] bool
        valid: the complete outputs; after `narrowed`, those that the objective uses.  # [b, n] bool
        golds: [gold tokens] int64 per prompt whose gold output the objective needs, else None.
        seeds: for an objective's random draws for a group.  # [b] int64
    """

    group_ids: list[str]
    proposal_versions: torch.Tensor
    prompts: list[torch.Tensor]
    completions: list[list[Completion]]
    lengths: torch.Tensor
    prior_logprobs: torch.Tensor
    sampler_logprobs: torch.Tensor
    proposal_logprobs: torch.Tensor
    rewards: torch.Tensor
    finished: torch.Tensor
    complete: torch.Tensor
    valid: torch.Tensor
    golds: list[Completion | None]
    seeds: torch.Tensor

    @property
    def trained(self) -> torch.Tensor:
        """The prompts that have an output to train on.  # [b] bool."""
        return self.valid.any(dim=1)

    @property
    def computed(self) -> torch.Tensor:
        """The texts whose log q_θ a step needs: valid outputs, and in the last column gold ones.  # [b, n + 1] bool."""
        has_gold = torch.tensor([gold is not None for gold in self.golds], dtype=torch.bool)
        return torch.cat([self.valid, (has_gold & self.trained)[:, None]], dim=1)

    def text(self, group: int, column: int) -> Completion:
        """Return the tokens of a text that is `computed`."""
        if column < self.valid.shape[1]:
            return self.completions[group][column]
        gold = self.golds[group]
        assert gold is not None, "only existing texts are computed"
        return gold

    def treated(self, settings: ObjectiveBase) -> "GroupBatch":
        """Return the batch as an objective takes outputs that were cut at the length limit.

        Masked ones are as if they had never been sampled: they are in no softmax, pair or ranking, and a group that is
        left with fewer than two outputs trains nothing.
        """
        if settings.truncated == "mask":
            left = at_least(2, self.complete & self.finished)
            return replace(self, complete=left, valid=left)
        if settings.truncated_penalty is not None:
            return replace(
                self, rewards=torch.where(self.finished, self.rewards, self.rewards + settings.truncated_penalty)
            )
        return self

    def narrowed(self, used: torch.Tensor) -> "GroupBatch":
        """Return the batch in which only outputs that an objective uses ([b, n] bool) are valid."""
        return replace(self, valid=self.valid & used)

    def values(self, policy_logprobs: torch.Tensor, groups: list[int] | None = None) -> GroupValues:
        """Return an objective's input for some groups (rows), or for all.

        `policy_logprobs` has log q_θ of these groups' texts, gold in the last column.  # [groups, n + 1]
        """
        rows = list(range(len(self.golds))) if groups is None else groups
        golds = [self.golds[row] for row in rows]
        has_gold = torch.tensor([gold is not None for gold in golds], dtype=torch.bool)
        return GroupValues(
            policy_logprobs=policy_logprobs[:, :-1],
            prior_logprobs=self.prior_logprobs[rows],
            proposal_logprobs=self.proposal_logprobs[rows],
            rewards=self.rewards[rows],
            complete=self.complete[rows],
            valid=self.valid[rows],
            lengths=self.lengths[rows],
            gold_logprobs=torch.where(has_gold, policy_logprobs[:, -1], torch.nan),
            gold_lengths=torch.tensor([len(gold) if gold is not None else 1 for gold in golds], dtype=torch.int64),
            seeds=self.seeds[rows],
            log_normaliser=0.0,
        )

    def stored_values(self) -> GroupValues:
        """Return an objective's input before the policy is computed; its log-probabilities are zeros."""
        return self.values(torch.zeros(self.computed.shape))

    def trained_tokens(self) -> int:
        """Count the tokens of the prompts, each once, and of the texts that the batch trains on."""
        prompts = sum(len(self.prompts[row]) for row in self.trained.nonzero().flatten().tolist())
        return prompts + sum(len(self.text(*place)) for place in self.computed.nonzero().tolist())

    def mean_reward(self) -> float | None:
        """Return the mean over prompts of the mean over their valid outputs; None where there is none."""
        means = torch.where(self.valid, self.rewards, 0.0).sum(dim=1) / self.valid.sum(dim=1).clamp(min=1)
        return float(means[self.trained].mean()) if self.trained.any() else None

    def collapsed(self) -> float:
        """Return the share of groups, among those with several outputs, whose outputs are all the same."""
        distinct = [
            len({tuple(completion.tolist()) for completion in group}) == 1
            for group in self.completions
            if len(group) > 1
        ]
        return sum(distinct) / len(distinct) if distinct else 0.0


def group_batch(batch: pa.RecordBatch, seed: int = 0) -> GroupBatch:
    """Convert a TRAIN_BATCH.

    Args:
        batch: the rows.
        seed: of the run; together with a group's id it gives the group's seed.

    Raises:
        PipelineError: a group's columns disagree about the number of its outputs, or a value is NaN or infinite (only
            numbers and nulls are allowed).
    """
    group_ids = batch["group_id"].to_pylist()
    counts = _lengths(batch["output_token_ids"])  # [b]
    present = torch.from_numpy(np.arange(max(counts, default=0)) < counts[:, None])  # [b, n]
    values = {
        name: _padded_values(batch[name], counts, present, name, group_ids)
        for name in ("prior_logprobs", "sampler_logprobs", "proposal_logprobs", "rewards")
    }
    outputs = batch["output_token_ids"].flatten()
    finished = torch.zeros(present.shape, dtype=torch.bool).masked_scatter_(
        present, torch.from_numpy(_writable(batch["finished"].flatten(), np.bool_))
    )
    lengths = torch.zeros(present.shape, dtype=torch.int64).masked_scatter_(
        present, torch.from_numpy(_lengths(outputs))
    )
    flat = _token_lists(outputs)
    starts = np.concatenate([[0], np.cumsum(counts)])
    missing = torch.stack([column.isnan() for column in values.values()]).any(dim=0)
    return GroupBatch(
        group_ids=group_ids,
        proposal_versions=torch.from_numpy(_writable(batch["proposal_version"], np.int64)),
        prompts=_token_lists(batch["prompt_token_ids"]),
        completions=[flat[start:end] for start, end in pairwise(starts)],
        lengths=lengths,
        finished=finished,
        complete=present & ~missing,
        valid=present & ~missing,
        golds=_golds(batch["gold_token_ids"]),
        seeds=torch.tensor([seed_from("group", seed, name) for name in group_ids], dtype=torch.int64),
        **values,
    )


def _padded_values(
    column: pa.ListArray, counts: np.ndarray, present: torch.Tensor, name: str, group_ids: list[str]
) -> torch.Tensor:
    """Return one number per output, NaN where it is null or there is no output.  # [b, n] float32."""
    wrong = np.flatnonzero(_lengths(column) != counts)
    if len(wrong):
        raise PipelineError(
            f"group {group_ids[wrong[0]]} has {counts[wrong[0]]} outputs but {_lengths(column)[wrong[0]]} "
            f"values in {name!r}: the store's groups and scores do not match."
        )
    flat = column.flatten()
    numbers = torch.from_numpy(_writable(flat, np.float32))
    nulls = torch.from_numpy(_writable(flat.is_null(), np.bool_))
    padded = torch.full(present.shape, torch.nan).masked_scatter_(present, numbers)
    odd = torch.zeros(present.shape, dtype=torch.bool).masked_scatter_(present, ~numbers.isfinite() & ~nulls)
    if odd.any():
        names = ", ".join(group_ids[row] for row in odd.any(dim=1).nonzero().flatten().tolist())
        raise PipelineError(f"{name!r} is NaN or infinite in group {names}: a missing value must be null.")
    return padded


def _golds(column: pa.ListArray) -> list[Completion | None]:
    there = column.is_valid().to_pylist()
    tokens = iter(_token_lists(column.drop_null()))
    return [next(tokens) if is_there else None for is_there in there]


def _token_lists(lists: pa.ListArray) -> list[torch.Tensor]:
    """Convert each list to a tensor; all share one conversion and one memory."""
    tokens = torch.from_numpy(_writable(lists.flatten(), np.int64))
    return list(tokens.split(_lengths(lists).tolist()))


def _lengths(lists: pa.ListArray) -> np.ndarray:
    return lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)


def _writable(array: pa.Array, dtype: type[np.generic]) -> np.ndarray:
    """Copy an array, since torch does not accept Arrow's read-only memory; nulls of float columns become NaN."""
    return array.to_numpy(zero_copy_only=False).astype(dtype, copy=True)
