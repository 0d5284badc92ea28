"""Levels of any depth as 8 bits: which level is white."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from captionmill.data.errors import ImageError

WHITE_OF_INTEGERS = (255, 1023, 4095, 65535)
"""8, 10, 12 and 16 bits, in a sample of 16 bits or more."""
WHITE_OF_FLOATS = (1, 255, 65535)


def scale_levels(
    values: npt.NDArray[np.generic], whites: Sequence[float] = (), *, peak_of: npt.NDArray[np.generic] | None = None
) -> npt.NDArray[np.uint8]:
    """`values` as 8 bits; white is the first of `whites` that none exceeds, or else the largest value.

    `whites` are by default those of the type of the values. `peak_of` are the values that decide, if not all. NaN and
    infinity are black. Raises ImageError for integers below zero, for black is not known then.
    """
    is_float = values.dtype.kind == "f"
    if not is_float and values.size and int(values.min()) < 0:
        raise ImageError(f"signed levels from {values.min()} to {values.max()}: which of them is black is not known")
    levels = finite(values)
    peak = float((levels if peak_of is None else finite(peak_of)).max(initial=0))
    usual = whites or (WHITE_OF_FLOATS if is_float else WHITE_OF_INTEGERS)
    white = next((level for level in usual if peak <= level), peak)
    scaled: npt.NDArray[np.float32] = np.rint(np.clip(levels / np.float32(white), 0, 1) * 255)
    return scaled.astype(np.uint8)


def finite(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """`values` as float32, with 0 for NaN and infinity."""
    with np.errstate(over="ignore"):
        levels = values.astype(np.float32)
    return np.nan_to_num(levels, copy=False, posinf=0, neginf=0)
