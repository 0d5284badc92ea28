"""The meter says what the pictures' way to the store waited for, and what would help."""

import time
from collections.abc import Iterator

import pytest
from builders import needs_fast_int8

from captionmill.stages.encoding.meter import Meter


def test_shares_add_up_and_count_reading_and_decoding_only_where_the_network_waited() -> None:
    meter = Meter(images=100, wall_s=10, input_wait_s=2, forward_s=7, write_s=1, read_s=5, decode_s=15, workers=2)
    assert meter.fractions() == {"reading": 0.05, "decoding": 0.15, "forward": 0.7, "writing": 0.1}


def test_shares_of_nothing_are_zero() -> None:
    assert Meter().fractions() == {"reading": 0, "decoding": 0, "forward": 0, "writing": 0}


def test_processes_add_their_seconds_and_keep_the_workers_of_one() -> None:
    meter = Meter(images=3, wall_s=1, forward_s=1, workers=2)
    meter += Meter(images=4, wall_s=2, read_s=3, workers=4)
    assert meter == Meter(images=7, wall_s=3, forward_s=1, read_s=3, workers=4)


@pytest.mark.parametrize(
    ("meter", "advice"),
    [
        (Meter(forward_s=9, input_wait_s=1, decode_s=9), "forward-bound: the network is the limit; a GPU or"),
        (Meter(forward_s=1, input_wait_s=9, decode_s=9, workers=2), "decoding-bound: raise `workers` (now 2, 8 cores)"),
        (Meter(forward_s=1, input_wait_s=9, decode_s=9, workers=8), "decoding-bound: all 8 cores decode; more cores"),
        (
            Meter(forward_s=1, input_wait_s=9, read_s=9, workers=8),
            "reading-bound: copy the images to faster storage, or raise",
        ),
        (Meter(forward_s=1, write_s=1), "writing-bound: put the output on a faster disk"),
    ],
)
def test_the_advice_names_what_bounds_the_speed(meter: Meter, advice: str) -> None:
    assert meter.advice(cores=8, engine="cpu torch float32").startswith(advice)


@needs_fast_int8
@pytest.mark.parametrize(("engine", "is_faster"), [("cpu openvino float32", True), ("cpu openvino int8", False)])
def test_a_network_in_fp32_that_int8_makes_faster_is_told_so(engine: str, is_faster: bool) -> None:
    advice = Meter(forward_s=9).advice(cores=8, engine=engine)
    assert advice.endswith(", or the less exact `precision` int8") == is_faster


def test_waiting_counts_the_time_that_pictures_take_to_come() -> None:
    meter = Meter()

    def slowly() -> Iterator[int]:
        for batch in (1, 2):
            time.sleep(0.02)
            yield batch

    with meter.writing():
        time.sleep(0.02)
    assert list(meter.waiting(slowly())) == [1, 2]
    assert meter.input_wait_s >= 0.04
    assert meter.write_s >= 0.02
