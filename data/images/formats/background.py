"""An image that Pillow decoded as RGB on a white background, whatever its mode."""

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from captionmill.data.images.formats.levels import scale_levels

_BITS_TAG, _PHOTOMETRIC_TAG = 0x0102, 0x0106
DEPTH = "depth"
"""In the `info` of an image in JPEG 2000: its bits per sample, which Pillow shifts to 16."""
FrameBox = tuple[int, int, int, int]


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` or its copy in mode RGB, on white where it is transparent, with 8 bits where it has more."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey_to_8_bits(image).convert("RGB")
    if isinstance(image, BmpImageFile) and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        return image.convert("RGB")  # many programs leave the fourth byte of a BMP zero and mean no transparency
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(layer, mask=layer)
        return rgb
    return image if image.mode == "RGB" else image.convert("RGB")


def first_frame_of(image: Image.Image) -> FrameBox | None:
    """Where the first frame lies on the canvas of a GIF that is not loaded yet; None if it fills the canvas."""
    if not isinstance(image, GifImageFile) or image.tell() or not image.tile:
        return None
    left, top, right, bottom = image.tile[0][1] or (0, 0, *image.size)
    box = (left, top, right, bottom)
    return None if box == (0, 0, *image.size) else box


def clear_around(pixels: npt.NDArray[np.uint8], frame: FrameBox | None) -> None:
    """Make everything outside of `frame` white, as browsers do; Pillow fills it with a colour of the palette."""
    if frame is not None:
        left, top, right, bottom = frame
        pixels[:top], pixels[bottom:], pixels[:, :left], pixels[:, right:] = 255, 255, 255, 255


def scale_transparent_color(image: PngImageFile) -> bytes | int | tuple[int, ...]:
    """A PNG's one transparent colour at the depth that Pillow decodes to; Pillow leaves it at the file's depth."""
    color: bytes | int | tuple[int, ...] = image.info["transparency"]
    rawmode = image.tile[0][3]
    if isinstance(color, tuple):
        return tuple(level >> 8 for level in color) if rawmode == "RGB;16B" else color
    return color * {"L;2": 85, "L;4": 17}.get(str(rawmode), 1)


def _whites_of(image: Image.Image) -> tuple[int, ...]:
    """The white that the file itself states, at the depth that Pillow decodes to; empty if it states none."""
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_BITS_TAG) == (12,):
        return (4095,)
    if isinstance(image, PpmImageFile):  # Pillow scales its largest level to this
        return (65535,)
    depth = int(image.info.get(DEPTH, 16))
    return () if depth == 16 else ((2**depth - 1) << (16 - depth),)


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Mode L from one of the modes I;16, I;16B, I and F."""
    values = np.asarray(image)  # height x width
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    grey = scale_levels(values, _whites_of(image))
    if tags.get(_PHOTOMETRIC_TAG) == 0:  # 0 is white; Pillow inverts such images only up to 8 bits
        grey = 255 - grey
    grey[values == image.info.get("transparency", np.nan)] = 255  # the level that a PNG declares transparent
    return Image.fromarray(grey)
