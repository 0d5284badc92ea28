"""Dropout sets the share of values to 0 that it should, each independently, and only in training."""

import pytest
import torch

from captionmill.stages.decoding.decoder import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.999])
def test_the_share_is_dropped_and_the_mean_stays(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropped = Dropout(rate)(torch.ones(1000, 1003, dtype=dtype)).double()
    zeros = float((dropped == 0).double().mean())
    deviation = (rate * (1 - rate) / dropped.numel()) ** 0.5
    assert abs(zeros - rate) < 5 * deviation + 2**-17
    assert dropped.unique().tolist() == [0, pytest.approx(1 / (1 - rate), rel=0.01)]


def test_values_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(1_000_000)) > 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8):  # four values share a draw
        assert abs(float((kept[:-distance] * kept[distance:]).mean())) < 0.25 * 5 / 1000


def test_gradients_pass_where_values_do() -> None:
    torch.manual_seed(0)
    values = torch.randn(7, 5, requires_grad=True)
    dropped = Dropout(0.5)(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad * values, dropped)
    assert set(values.grad.flatten().tolist()) == {0.0, 2.0}


def test_the_generator_decides() -> None:
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(Dropout(0.5)(torch.ones(64)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_nothing_is_dropped_at_a_rate_of_0_or_outside_of_training() -> None:
    values = torch.randn(9)
    assert Dropout(0)(values) is values
    assert Dropout(0.5).eval()(values) is values
    assert torch.equal(Dropout(1)(values), torch.zeros(9))
    assert Dropout(0.5)(torch.ones(0, 4)).shape == (0, 4)
