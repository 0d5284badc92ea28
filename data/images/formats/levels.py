"""Levels of any depth as 8 bits: which level is white."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from captionmill.data.errors import ImageError

_WHITE_OF_INTEGERS = (255, 1023, 4095, 65535)
"""8, 10, 12 and 16 bits, in a sample of 16 bits or more."""
_WHITE_OF_FLOATS = (1, 255, 65535)
_BEYOND = 0.1  # of white: what sharpening and resizing add to floats above white and below black
_DARKEST = 0.5  # of white: a peak of less does not show which level is white


def scale_levels(
    values: npt.NDArray[np.generic], whites: Sequence[float] = (), *, peak_of: npt.NDArray[np.generic] | None = None
) -> npt.NDArray[np.uint8]:
    """`values` as 8 bits; white is the first of `whites` that none exceeds.

    `whites` are by default those of the type of the values. `peak_of` are the values that decide, if not all. NaN and
    infinity are black. Raises ImageError if it is not known which level is black or white: for integers below zero,
    for floats below a tenth of white, and where the largest value is less than a half of its white, unless that is 1
    or it is an integer of 16 bits.
    """
    levels = _finite(values)
    deciding = levels if peak_of is None else _finite(peak_of)
    peak = float(deciding.max(initial=0))
    if values.dtype.kind == "f":
        white = _white_of_floats(peak, float(levels.min(initial=0)))
    else:
        if values.size and int(values.min()) < 0:
            raise ImageError(
                f"signed levels from {values.min()} to {values.max()}: which of them is black is not known"
            )
        white = next((level for level in whites or _WHITE_OF_INTEGERS if peak <= level), 0) or _white_of_32_bits(
            peak, values.dtype
        )
    scaled: npt.NDArray[np.float32] = np.rint(np.clip(levels / np.float32(white), 0, 1) * 255)
    return scaled.astype(np.uint8)


def _white_of_floats(peak: float, lowest: float) -> float:
    """The usual level that the values, from `lowest` to `peak`, show to be white; ImageError if they show none."""
    white = next((level for level in _WHITE_OF_FLOATS if peak <= level * (1 + _BEYOND)), 0)
    if not white or (white > 1 and peak < white * _DARKEST):
        raise ImageError(f"float levels up to {peak:g}: which of them is white is not known; save it with 0 to 1")
    if lowest < -white * _BEYOND:
        raise ImageError(f"float levels from {lowest:g} to {peak:g}: which of them is black is not known")
    return white


def _white_of_32_bits(peak: float, dtype: np.dtype[Any]) -> float:
    """The largest level of an integer type, if `peak` is near enough to it; else ImageError."""
    white = float(np.iinfo(dtype).max)
    if peak < white * _DARKEST:
        raise ImageError(f"{dtype} levels up to {peak:.0f}: which of them is white is not known; save it with 16 bits")
    return white


def _finite(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """`values` as float32, with 0 for NaN and infinity."""
    with np.errstate(over="ignore"):
        levels = values.astype(np.float32)
    return np.nan_to_num(levels, copy=False, posinf=0, neginf=0)
