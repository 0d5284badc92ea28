"""Decodes the bytes of an image file to upright RGB.

A format is recognised by a file's first bytes, never by its name. Importing this module sets Pillow's pixel limit and
silences Pillow's warnings about damaged metadata for the whole process: neither can be done per thread.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile as PillowFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captionmill.data.errors import ImageError
from captionmill.data.images.formats import HEADER_BYTES, is_camera_header, unsupported_format
from captionmill.data.images.openers import Opener, find_opener

Pixels = npt.NDArray[np.uint8]

PIXEL_LIMIT = 300_000_000  # 1.2 GB as RGB, more while transparency is resolved; a panorama of 100 million is fine

REDUCING_GAP = 3.0
"""An image that is decoded at reduced size is still at least this many times larger than needed."""

_AtLeast = Callable[[int, int], tuple[int, int]]

Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
warnings.filterwarnings("ignore", module=r"PIL\.")


class PlainJpegFile(JpegImageFile):
    """A JPEG, or the first image of an MPO, without Pillow's reading of the EXIF, which would only set the dpi."""

    def _read_dpi_from_exif(self) -> None:
        pass


_DECODERS: tuple[tuple[bytes, type[PillowFile]], ...] = (
    (rb"\xff\xd8\xff", PlainJpegFile),
    (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    (rb"RIFF....WEBP", WebPImageFile),
    (rb"GIF8[79]a", GifImageFile),
    (rb"II[*+]\0|MM\0[*+]", TiffImageFile),
    (rb"BM.{13}\0\0\0", BmpImageFile),
)

# What Pillow may raise on a damaged file; Warning is for a caller who turns warnings into errors.
_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError, MemoryError),
    *(AssertionError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError, Warning),
)

_ORIENTATION_TAG, _BITS_TAG, _PHOTOMETRIC_TAG = 0x0112, 0x0102, 0x0106
_UPRIGHT = {  # EXIF orientation -> the operation that makes the image upright (Exif 2.32, 4.6.4 A)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_image_header(header: bytes) -> bool:
    """Whether a file that begins with `header` (HEADER_BYTES, or all of it) is an image, in whatever format."""
    return _find_decoder(header) is not None or is_camera_header(header)


def decode_image(
    data: bytes, *, at_least: Callable[[int, int], tuple[int, int]] | None = None, name: str = ""
) -> Image.Image:
    """The result of `decode_pixels` as a Pillow image in mode RGB."""
    try:
        return Image.fromarray(decode_pixels(data, at_least=at_least, name=name))
    except MemoryError as exc:
        raise ImageError(_reason(exc)) from exc


def decode_pixels(
    data: bytes, *, at_least: Callable[[int, int], tuple[int, int]] | None = None, name: str = ""
) -> Pixels:
    """The upright image, [H, W, 3] uint8 RGB, on white where it is transparent; the first of several frames or pages.

    16-bit grey is scaled to 8 bits. In float grey, white is the first of 1, 255 and 65535 that no pixel exceeds, or
    else the largest pixel; 0, NaN and infinity are black. Colour profiles are not applied.

    `at_least` returns, for an upright image of (width, height), the size to which it will be resized. A JPEG that is 2
    * REDUCING_GAP times as large or larger is decoded at a half, a quarter or an eighth of its size, but never below
    REDUCING_GAP times that size. This is several times faster, and the resized image is nearly the same.

    `name` is that of the file. Its suffix counts only where the content does not show the format: the files of many
    cameras begin as a TIFF does, with a thumbnail.

    Raises ImageError with the reason if it is not an image, is damaged, exceeds PIXEL_LIMIT or is in a format that is
    not supported.
    """
    try:
        return _decode(data, at_least, name)
    except ImageError:
        raise
    except _DAMAGE as exc:
        raise ImageError(_reason(exc)) from exc


def pixels_of(image: Image.Image) -> Pixels:
    """What `decode_pixels` makes of the file that Pillow opened as `image`; of an image made in memory, its pixels.

    The EXIF orientation in `image.info` is applied. Raises ImageError as `decode_pixels`.
    """
    try:
        _require_size(image.size)
        if isinstance(image, PngImageFile) and "transparency" in image.info and image.tile:
            color = _scale_transparent_color(image)
            image = image.copy()  # the caller's is left as it is
            image.info["transparency"] = color
        image.load()
        return _turn_upright(np.array(_to_rgb(image)), _read_orientation(image.info.get("exif", b"")))
    except ImageError:
        raise
    except _DAMAGE as exc:
        raise ImageError(_reason(exc)) from exc


def _find_decoder(header: bytes) -> Opener | None:
    usual = next((decoder for magic, decoder in _DECODERS if re.match(magic, header, re.DOTALL)), None)
    return usual or find_opener(header)


def _decode(data: bytes, at_least: _AtLeast | None, name: str) -> Pixels:
    if not data:
        raise ImageError("the file is empty")
    decoder = _find_decoder(data[:HEADER_BYTES])
    if unsupported := unsupported_format(data, name, is_known=decoder is not None):
        raise ImageError(f"{unsupported} is not supported; convert it to JPEG or PNG")
    if decoder is None:
        raise ImageError("not an image, or in a format other than JPEG, PNG, WebP, BMP, GIF and TIFF")
    with decoder(io.BytesIO(data)) as image:
        _require_size(image.size)
        orientation = _read_orientation(image.info.get("exif", b""))  # Pillow rotates a TIFF itself
        if isinstance(image, JpegImageFile):
            pixels = _decode_jpeg(data, image, _reduction(image.size, orientation, at_least))
        else:
            if isinstance(image, PngImageFile) and "transparency" in image.info:
                image.info["transparency"] = _scale_transparent_color(image)
            image.load()
            pixels = np.array(_to_rgb(image))
            orientation = _read_orientation(image.info.get("exif", b""))
    return _turn_upright(pixels, orientation)


def _require_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > PIXEL_LIMIT:
        raise ImageError(f"{width:,} x {height:,} pixels, over the limit of {PIXEL_LIMIT:,} pixels")
    if not width * height:
        raise ImageError("an image without pixels")


def _turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    upright = _UPRIGHT.get(orientation)
    return pixels if upright is None else np.array(Image.fromarray(pixels).transpose(upright))


def _decode_jpeg(data: bytes, image: JpegImageFile, reduction: int) -> Pixels:
    """RGB at 1/`reduction` of the size, by libjpeg-turbo, or by Pillow for files that libjpeg-turbo refuses.

    Both return the same bits for undamaged files, and for files whose damage affects no pixel.
    """
    width, height = (-(-side // reduction) for side in image.size)
    ends_early = None
    if image.mode in ("RGB", "L"):
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                data, fastdct=False, fastupsample=False, min_width=width, min_height=height, strict=True
            )
            if pixels.shape[:2] == (height, width):
                return pixels
        except ValueError as exc:
            ends_early = exc if "premature end" in str(exc).lower() else None
    if reduction > 1:
        image.draft(None, (width, height))
    image.load()
    if ends_early is not None:  # Pillow fills the missing part with grey
        raise ends_early
    return np.array(_to_rgb(image))


def _reduction(size: tuple[int, int], orientation: int, at_least: _AtLeast | None) -> int:
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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(layer, mask=layer)
        return rgb
    return image.convert("RGB")


def _scale_transparent_color(image: PngImageFile) -> bytes | int | tuple[int, ...]:
    """A PNG's one transparent colour at the depth that Pillow decodes to; Pillow leaves it at the file's depth."""
    color: bytes | int | tuple[int, ...] = image.info["transparency"]
    rawmode = image.tile[0][3]
    if isinstance(color, tuple):
        return tuple(level >> 8 for level in color) if rawmode == "RGB;16B" else color
    return color * {"L;2": 85, "L;4": 17}.get(str(rawmode), 1)


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Mode L from one of the modes I;16, I;16B, I and F."""
    values = np.asarray(image)  # height x width
    levels = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    peak = float(levels.max())
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (4095.0 if tags.get(_BITS_TAG) == (12,) else 65535.0,)
    white = next((level for level in usual if peak <= level), peak)
    grey = np.rint(np.clip(levels / white, 0, 1) * 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC_TAG) == 0:  # 0 is white; Pillow inverts such images only up to 8 bits
        grey = 255 - grey
    grey[values == image.info.get("transparency", np.nan)] = 255  # the level that a PNG declares transparent
    return Image.fromarray(grey)


def _read_orientation(exif: bytes) -> int:
    """The orientation in raw EXIF, 1 where it is absent or damaged (TIFF 6.0, section 2: 12-byte entries)."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    start = int.from_bytes(tiff[4:8], order) + 2
    end = start + 12 * int.from_bytes(tiff[start - 2 : start], order)
    for entry in range(start, min(end, len(tiff)), 12):
        if int.from_bytes(tiff[entry : entry + 2], order) == _ORIENTATION_TAG:
            return int.from_bytes(tiff[entry + 8 : entry + 10], order)
    return 1


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"over the limit of {PIXEL_LIMIT:,} pixels"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"truncated or damaged image ({detail[:100]})"
