"""Quarters of captions by confidence, and its rank correlation with the score."""

import pytest

from captionmill.stages.scoring.statistics import Quarter, quarter_by_confidence, rank_correlation


def test_quarters_hold_the_captions_from_the_least_to_the_most_sure() -> None:
    quarters = quarter_by_confidence([0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4], [8, 1, 7, 2, 6, 3, 5, 4])
    assert [(quarter.count, quarter.low, quarter.high, quarter.score) for quarter in quarters] == [
        (2, 0.1, 0.2, 1.5),
        (2, 0.3, 0.4, 3.5),
        (2, 0.6, 0.7, 5.5),
        (2, 0.8, 0.9, 7.5),
    ]
    assert [quarter.confidence for quarter in quarters] == pytest.approx([0.15, 0.35, 0.65, 0.85])


def test_fewer_than_four_captions_are_a_part_each() -> None:
    assert quarter_by_confidence([0.5], [2.0]) == [Quarter(1, 0.5, 0.5, 0.5, 2.0)]
    assert quarter_by_confidence([], []) == []


def test_rank_correlation_is_one_for_any_rising_curve_and_minus_one_for_a_falling_one() -> None:
    assert rank_correlation([0.1, 0.2, 0.9], [1.0, 5.0, 6.0]) == pytest.approx(1.0)
    assert rank_correlation([0.1, 0.2, 0.9], [6.0, 5.0, 1.0]) == pytest.approx(-1.0)


def test_equal_values_share_their_mean_rank() -> None:
    # ranks 1.5, 1.5, 3 and 1, 2, 3: covariance 1.5, deviations sqrt(1.5) and sqrt(2)
    assert rank_correlation([0.2, 0.2, 0.9], [1.0, 2.0, 3.0]) == pytest.approx(1.5 / (1.5 * 2) ** 0.5)


def test_there_is_no_correlation_where_all_are_alike() -> None:
    assert rank_correlation([0.5, 0.5], [1.0, 2.0]) is None
    assert rank_correlation([0.5, 0.6], [0.0, 0.0]) is None
