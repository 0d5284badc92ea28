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


def decode_jpeg(data: bytes, image: JpegImageFile, reduction: int) -> npt.NDArray[np.uint8]:
    """RGB at 1/`reduction` of the size, by libjpeg-turbo, or by Pillow for files that libjpeg-turbo refuses.

    Both return the same bits for undamaged files. Damage is accepted by the rule of `accept_damage`; else ImageError,
    or whatever Pillow raises.
    """
    width, height = (-(-side // reduction) for side in image.size)
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
            return _decode_by_pillow(repaired, reduction)
    pixels = _decode_by_pillow(image, reduction)
    if damage is not None:  # Pillow fills the missing part with grey
        raise ImageError(f"truncated or damaged image ({damage[:100]})")
    return pixels


def _decode_by_pillow(image: JpegImageFile, reduction: int) -> npt.NDArray[np.uint8]:
    if reduction > 1:
        image.draft(None, (-(-image.width // reduction), -(-image.height // reduction)))
    image.load()
    return np.array(to_rgb(image))


def jpeg_memory(image: JpegImageFile, reduction: int) -> int:
    """The bytes that `decode_jpeg` needs: for the pixels, and for all coefficients of a progressive JPEG."""
    pixels = image.width * image.height
    coefficients = 2 * len(image.getbands()) if image.info.get("progressive") else 0
    return pixels * coefficients + pixels // reduction**2 * (BYTES_PER_PIXEL if image.mode == "CMYK" else _BYTES_OF_RGB)


def reduction_of(size: tuple[int, int], orientation: int, at_least: AtLeast | None) -> int:
    """The factor, a power of two, by which the sides of a JPEG of `size` are reduced in decoding."""
    if at_least is None:
        return 1
    width, height = size if orientation < 5 else size[::-1]
    least_width, least_height = at_least(width, height)
    gap = min(width / least_width, height / least_height) / REDUCING_GAP
    for factor in (8, 4, 2):
        if gap >= factor and at_least(-(-width // factor), -(-height // factor)) == (least_width, least_height):
            return factor
    return 1
