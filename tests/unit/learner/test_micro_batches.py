import pytest

from brain_align.common.nn.prefix.packing import TokenBudget
from brain_align.learner.steps.micro_batches import GroupTexts, share_out
from tests.unit.learner.train_batches import train_batch, train_row, trained_batch


def padded(max_tokens):
    return TokenBudget(max_tokens, packed=False)


def batch_of(*sizes, prompt=4, length=6):
    """Groups of outputs that take 10 tokens each with their prompt."""
    rows = [
        train_row(f"g{index}", prompt=[1] * prompt, outputs=[[2] * length] * size) for index, size in enumerate(sizes)
    ]
    return trained_batch(train_batch(*rows))


def test_packed_groups_share_a_micro_batch_while_there_is_room():
    packed = TokenBudget(28, packed=True)  # 4 + 2 * 5 tokens per group
    assert share_out(batch_of(2, 2, 2), ranks=1, budget=packed) == [
        [[[GroupTexts(0, [0, 1]), GroupTexts(1, [0, 1])]], [[GroupTexts(2, [0, 1])]]]
    ]


@pytest.mark.parametrize("budget", [padded(100), TokenBudget(100, packed=True, window=9)])
def test_padded_groups_are_passes_of_their_own_so_that_ranks_can_count_them(budget):
    assert share_out(batch_of(2, 2), ranks=1, budget=budget) == [[[[GroupTexts(0, [0, 1])]], [[GroupTexts(1, [0, 1])]]]]


def test_beyond_a_sliding_window_every_output_pays_for_its_prompt():
    budget = TokenBudget(25, packed=True, window=9)
    assert share_out(batch_of(3), ranks=1, budget=budget) == [[[[GroupTexts(0, [0, 1])], [GroupTexts(0, [2])]]]]


def test_a_group_beyond_the_budget_is_split_and_stays_alone():
    assert share_out(batch_of(2, 5, 2), ranks=1, budget=padded(25)) == [
        [
            [[GroupTexts(0, [0, 1])]],
            [[GroupTexts(1, [0, 1])], [GroupTexts(1, [2, 3])], [GroupTexts(1, [4])]],
            [[GroupTexts(2, [0, 1])]],
        ]
    ]


def test_an_output_beyond_the_budget_goes_alone():
    assert share_out(batch_of(2), ranks=1, budget=padded(1)) == [[[[GroupTexts(0, [0])], [GroupTexts(0, [1])]]]]


def test_only_valid_outputs_of_trained_prompts_are_computed():
    batch = trained_batch(
        train_batch(
            train_row("few", outputs=[[1], [2]], rewards=[1.0, None]),
            train_row("some", outputs=[[1], [2], [3]], rewards=[1.0, None, 2.0]),
        )
    )
    assert share_out(batch, ranks=1, budget=padded(100)) == [[[[GroupTexts(1, [0, 2])]]]]


def test_ranks_take_contiguous_shares_of_what_is_trained():
    shares = share_out(batch_of(2, 1, 2, 2, 2), ranks=2, budget=padded(20))
    assert [[part.group for unit in share for micro in unit for part in micro] for share in shares] == [
        [0, 2],
        [3, 4],
    ]


def test_shares_are_equal_in_tokens_not_in_groups():
    shares = share_out(batch_of(2, 2, 2, 6), ranks=2, budget=padded(100))
    assert [[part.group for unit in share for micro in unit for part in micro] for share in shares] == [[0, 1, 2], [3]]


def test_packed_groups_pay_for_their_prompt_once():
    packed = TokenBudget(20, packed=True)  # a prompt of 4, and 5 tokens per output: its last predicts nothing
    assert share_out(batch_of(3, 1, 2), ranks=1, budget=packed) == [
        [[[GroupTexts(0, [0, 1, 2])]], [[GroupTexts(2, [0, 1])]]]
    ]


def test_more_ranks_than_groups():
    assert share_out(batch_of(2), ranks=3, budget=padded(100)) == [[], [[[GroupTexts(0, [0, 1])]]], []]
    assert share_out(batch_of(1), ranks=2, budget=padded(100)) == [[], []]
