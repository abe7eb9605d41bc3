import pytest

from brain_align.common.statistics import win_rate


def test_the_paper_s_intervals_come_out() -> None:
    """Table 1: 95.40 % of 5,103 prompts has ± 0.57; 86.72 % of 6,553 has ± 0.82."""
    wins = round(0.9540 * 5103)
    hh = win_rate([1.0] * wins + [0.0] * (5103 - wins), [0.5] * 5103)
    assert hh.rate == pytest.approx(95.40, abs=0.01)
    assert hh.ci95 == pytest.approx(0.57, abs=0.006)
    wins = round(0.8672 * 6553)
    tldr = win_rate([1.0] * wins + [0.0] * (6553 - wins), [0.5] * 6553)
    assert tldr.ci95 == pytest.approx(0.82, abs=0.006)


def test_a_tie_is_no_win() -> None:
    result = win_rate([1.0, 2.0, 0.0, 3.0], [1.0, 1.0, 1.0, 1.0])
    assert (result.rate, result.ties, result.prompts) == (50.0, 25.0, 4)


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="at least one"):
        win_rate([], [])
