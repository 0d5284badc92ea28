"""JPEGs: by libjpeg-turbo, at reduced size where that is enough, or by Pillow where libjpeg-turbo refuses them."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL.JpegImagePlugin import JpegImageFile

from captionmill.data.errors import ImageError
from captionmill.data.images.formats.background import to_rgb
from captionmill.data.images.formats.jpeg_damage import accept_damage, has_hole
from captionmill.data.images.formats.limits import BYTES_PER_PIXEL

_BYTES_OF_RGB = 12  # by Pillow; libjpeg-turbo needs 3
_CHECKED_PIXELS, _CHECKED_SIDE = 4_000_000, 64  # at most and at least, of an image that another decoder gets
REDUCING_GAP = 3.0
"""An image that is decoded at reduced size is still at least this many times larger than needed."""
_REDUCED = (1, 2, 3, 4, 5, 6)
"""The eighths of its sides at which a large JPEG is decoded. For 3, 5, 6 and 7 libjpeg-turbo has no SIMD code; 7 takes
longer than the whole size, decoded and resized (`benchmarks/decode.py`)."""
_BY_PILLOW = {3: 4, 5: 8, 6: 8}
"""The eighths at which Pillow decodes instead, which has these steps only."""
AtLeast = Callable[[int, int], tuple[int, int]]
"""The size to which an upright image of (width, height) will be resized."""


class PlainJpegFile(JpegImageFile):
    """A JPEG, or the first image of an MPO, without Pillow's reading of the EXIF, which would only set the dpi."""

    def _read_dpi_from_exif(self) -> None:
        pass


class CheckedJpeg(NamedTuple):
    """A JPEG of which libjpeg-turbo has read every code without a warning, for a decoder that sees no damage."""

    data: bytes
    size: tuple[int, int]
    """Width and height, pixels."""
    eighth: npt.NDArray[np.uint8]
    """[ceil(H / 8), ceil(W / 8), 3] RGB: the image at an eighth of its size, to compare what that decoder makes."""


def check_jpeg(data: bytes, image: JpegImageFile) -> CheckedJpeg | None:
    """`data`, opened as `image`, if it is in RGB or grey, not progressive, neither tiny nor large, and without damage.

    Raises what libjpeg-turbo reports as ValueError.
    """
    width, height = image.size
    is_usual = image.mode in ("RGB", "L") and not image.info.get("progressive")
    if not is_usual or min(image.size) < _CHECKED_SIDE or max(width * height, len(data) // 3) > _CHECKED_PIXELS:
        return None
    least = {"min_width": -(-width // 8), "min_height": -(-height // 8)}
    eighth = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True, **least)
    if eighth.shape[:2] != (least["min_height"], least["min_width"]) or has_hole(data):
        return None
    return CheckedJpeg(data, image.size, eighth)


def decode_jpeg(data: bytes, image: JpegImageFile, eighths: int) -> npt.NDArray[np.uint8]:
    """RGB at `eighths` of the size, by libjpeg-turbo, or by Pillow for files that libjpeg-turbo refuses.

    Both return the same bits for undamaged files, if not at one of the steps that Pillow lacks (`_BY_PILLOW`).
    Damage is accepted by the rule of `accept_damage`; else ImageError, or whatever Pillow raises.
    """
    width, height = _scaled(image.size, eighths)
    colorspace = "CMYK" if image.mode == "CMYK" else "RGB"
    damage = None
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, colorspace, fastdct=False, fastupsample=False, min_width=width, min_height=height, strict=True
        )
        if colorspace == "RGB" and pixels.shape[:2] == (height, width) and not has_hole(data):
            return pixels
    except ValueError as exc:
        damage = str(exc)
    if damage is None and has_hole(data):
        raise ImageError("truncated or damaged image (a part of it is zeros)")
    if damage is not None and (accepted := accept_damage(data, damage)) is not None:
        with PlainJpegFile(io.BytesIO(accepted)) as repaired:
            return _decode_by_pillow(repaired, eighths)
    pixels = _decode_by_pillow(image, eighths)
    if damage is not None:  # Pillow fills the missing part with grey
        raise ImageError(f"truncated or damaged image ({damage[:100]})")
    return pixels


def _decode_by_pillow(image: JpegImageFile, eighths: int) -> npt.NDArray[np.uint8]:
    if eighths < 8:  # rounded down: the draft is at least as large, at 8, 4, 2 or 1 eighths
        image.draft(None, (image.width * eighths // 8, image.height * eighths // 8))
    image.load()
    return np.array(to_rgb(image))


def _scaled(size: tuple[int, int], eighths: int) -> tuple[int, int]:
    return -(-size[0] * eighths // 8), -(-size[1] * eighths // 8)


def jpeg_memory(image: JpegImageFile, eighths: int) -> int:
    """The bytes that `decode_jpeg` needs: for the pixels, and for all coefficients of a progressive JPEG."""
    pixels = image.width * image.height
    coefficients = 2 * len(image.getbands()) if image.info.get("progressive") else 0
    by_pillow = _BY_PILLOW.get(eighths, eighths)
    levels = BYTES_PER_PIXEL if image.mode == "CMYK" else _BYTES_OF_RGB
    return pixels * coefficients + pixels * by_pillow**2 // 64 * levels


def eighths_of(size: tuple[int, int], orientation: int, at_least: AtLeast | None) -> int:
    """The eighths of its sides, 8 or one of _REDUCED, at which a JPEG of `size` is decoded."""
    if at_least is None:
        return 8
    width, height = size if orientation < 5 else size[::-1]
    least = at_least(width, height)
    enough = 8 * REDUCING_GAP * least[0], 8 * REDUCING_GAP * least[1]
    for eighths in _REDUCED:
        is_enough = width * eighths >= enough[0] and height * eighths >= enough[1]
        if is_enough and at_least(*_scaled((width, height), eighths)) == least:
            return eighths
    return 8
