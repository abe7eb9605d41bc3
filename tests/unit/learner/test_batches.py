import math

import pytest
import torch

from brain_align.common.errors import PipelineError
from brain_align.learner.steps.batches import group_batch
from tests.unit.learner.train_batches import train_batch, train_row


def test_groups_of_different_sizes_are_padded():
    batch = group_batch(
        train_batch(
            train_row("a", prompt=[9, 8], outputs=[[1, 2], [3]], rewards=[0.5, None], prior_logprobs=[-1.0, -2.0]),
            train_row("b", prompt=[7], outputs=[[4, 5, 6], [], [1]], proposal_version=2),
        )
    )
    assert batch.group_ids == ["a", "b"]
    assert batch.proposal_versions.tolist() == [0, 2]
    assert [prompt.tolist() for prompt in batch.prompts] == [[9, 8], [7]]
    completions = [[completion.tolist() for completion in group] for group in batch.completions]
    assert completions == [[[1, 2], [3]], [[4, 5, 6], [], [1]]]
    assert batch.lengths.tolist() == [[2, 1, 0], [3, 0, 1]]
    assert batch.valid.tolist() == [[True, False, False], [True, True, True]]
    assert batch.trained.tolist() == [True, True]
    expected = torch.tensor([[0.5, math.nan, math.nan], [0.0, 1.0, 2.0]])
    torch.testing.assert_close(batch.rewards, expected, equal_nan=True)
    assert batch.prior_logprobs[0, :2].tolist() == [-1.0, -2.0]
    assert batch.trained_tokens() == 2 + 2 + 1 + 3 + 0 + 1
    assert batch.mean_reward() == pytest.approx((0.5 + (0 + 1 + 2) / 3) / 2)


def test_the_gold_output_is_the_last_column():
    batch = group_batch(train_batch(train_row("a", gold_token_ids=[7, 8, 9]), train_row("b")))
    assert batch.computed.tolist() == [[True, True, True], [True, True, False]]
    assert batch.text(0, 2).tolist() == [7, 8, 9]
    values = batch.values(torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]]))
    assert values.policy_logprobs.tolist() == [[-1, -2], [-4, -5]]
    torch.testing.assert_close(values.gold_logprobs, torch.tensor([-3.0, math.nan]), equal_nan=True)
    nothing = batch.narrowed(torch.tensor([[False, False], [True, False]]))
    assert nothing.computed.tolist() == [[False, False, False], [True, False, False]]
    assert nothing.trained.tolist() == [False, True]


def test_a_group_s_seed_is_made_of_the_run_s_and_its_own():
    rows = train_batch(train_row("a"), train_row("b"))
    first, other = group_batch(rows, seed=1).seeds, group_batch(rows, seed=2).seeds
    assert torch.equal(first, group_batch(rows, seed=1).seeds)
    assert len({*first.tolist(), *other.tolist()}) == 4


def test_any_missing_value_makes_a_slot_invalid():
    outputs = [[1], [2], [3], [4]]
    row = train_row(
        "a",
        outputs=outputs,
        rewards=[1.0, None, 1.0, 1.0],
        prior_logprobs=[-1.0, -1.0, None, -1.0],
        proposal_logprobs=[-1.0, -1.0, -1.0, None],
    )
    assert group_batch(train_batch(row)).valid.tolist() == [[True, False, False, False]]


def test_a_slice_of_a_batch_is_converted_alone():
    whole = train_batch(train_row("a"), train_row("b", prompt=[1], outputs=[[9], [8, 7]], rewards=[3.0, 4.0]))
    batch = group_batch(whole.slice(1, 1))
    assert batch.group_ids == ["b"]
    assert [completion.tolist() for completion in batch.completions[0]] == [[9], [8, 7]]
    assert batch.rewards.tolist() == [[3.0, 4.0]]


def test_tensors_do_not_share_arrows_read_only_memory():
    source = train_batch(train_row("a"))
    batch = group_batch(source)
    batch.prompts[0].zero_()
    batch.rewards.zero_()
    assert source["prompt_token_ids"].to_pylist() == [[5, 6, 7]]
    assert source["rewards"].to_pylist() == [[0.0, 1.0]]


def test_an_empty_batch():
    batch = group_batch(train_batch())
    assert batch.valid.shape == (0, 0)
    assert batch.collapsed() == 0
    assert batch.trained_tokens() == 0
    assert batch.mean_reward() is None


def test_columns_that_disagree_are_refused():
    row = train_row("odd", rewards=[1.0, 2.0, 3.0])
    with pytest.raises(PipelineError, match="group odd has 2 outputs but 3 values in 'rewards'"):
        group_batch(train_batch(train_row("a"), row))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused(value):
    with pytest.raises(PipelineError, match="'prior_logprobs' is NaN or infinite in group odd"):
        group_batch(train_batch(train_row("a"), train_row("odd", prior_logprobs=[-1.0, value])))


def test_collapsed_groups():
    batch = group_batch(
        train_batch(
            train_row("same", outputs=[[1, 2], [1, 2]]),
            train_row("differ", outputs=[[1, 2], [1, 3]]),
            train_row("alone", outputs=[[1]]),
            train_row("half", outputs=[[1], [1], [2]]),
        )
    )
    assert batch.collapsed() == pytest.approx(1 / 3)
