"""Decodes the bytes of an image file to upright RGB.

A format is recognised by a file's first bytes, never by its name. Importing this module sets Pillow's pixel limit and
silences Pillow's warnings about damaged metadata for the whole process: neither can be done per thread.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile as PillowFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captionmill.data.errors import ImageError, one_line
from captionmill.data.images.formats.background import (
    FrameBox,
    clear_around,
    first_frame_of,
    scale_transparent_color,
    to_rgb,
)
from captionmill.data.images.formats.holes import require_whole_webp
from captionmill.data.images.formats.jpeg import (
    AtLeast,
    CheckedJpeg,
    PlainJpegFile,
    check_jpeg,
    decode_jpeg,
    eighths_of,
    jpeg_memory,
)
from captionmill.data.images.formats.kinds import FORMATS, HEADER_BYTES, is_camera_header, why_not_read
from captionmill.data.images.formats.limits import PIXEL_LIMIT, require_size
from captionmill.data.images.formats.openers import Opener, find_opener
from captionmill.data.images.formats.orientation import read_orientation, turn_upright
from captionmill.data.images.formats.png import require_all_rows, require_whole_pixels, without_metadata
from captionmill.data.images.formats.tiff import decode_tiff, pixels_of_tiff
from captionmill.data.images.memory import BUDGET

Pixels = npt.NDArray[np.uint8]

Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
warnings.filterwarnings("ignore", module=r"PIL\.")


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


def is_image_header(header: bytes) -> bool:
    """Whether a file that begins with `header` (HEADER_BYTES, or all of it) is an image, in whatever format."""
    return _find_decoder(header) is not None or is_camera_header(header)


@contextmanager
def _damage_named() -> Iterator[None]:
    """Raise ImageError with the reason for whatever Pillow raises in the block."""
    try:
        yield
    except ImageError:
        raise
    except _DAMAGE as exc:
        raise ImageError(_reason(exc)) from exc


def decode_image(data: bytes, *, at_least: AtLeast | None = None, name: str = "") -> Image.Image:
    """The result of `decode_pixels` as a Pillow image in mode RGB."""
    with _damage_named():
        return Image.fromarray(decode_pixels(data, at_least=at_least, name=name))


def decode_pixels(data: bytes, *, at_least: AtLeast | None = None, name: str = "") -> Pixels:
    """The upright image, [H, W, 3] uint8 RGB, on white where it is transparent; the first of several frames or pages.

    Levels of more than 8 bits are scaled as `docs/images.md` states: white is the first of 255, 1023, 4095 and 65535
    that no pixel exceeds, of floats the first of 1, 255 and 65535 that they come near. 16-bit colours lose their lower
    byte, unless it is all there is. NaN and infinity are black. Colour profiles are not applied.

    `at_least` returns, for an upright image of (width, height), the size to which it will be resized. A larger
    JPEG is decoded at one to six eighths of its size, but never below REDUCING_GAP times that size. This is up to
    several times faster, and the resized image is nearly the same.

    `name` is that of the file. Its suffix counts only where the content does not show the format: the files of many
    cameras begin as a TIFF does, with a thumbnail.

    Waits for the memory that the image needs, of the budget of all threads.

    Raises ImageError with the reason if it is not an image, is damaged, is of a kind that is not supported, does not
    show which level is white, or exceeds PIXEL_LIMIT or the budget. `docs/images.md` states which damage is accepted.
    """
    with _damage_named(), BUDGET.one_image():
        BUDGET.take_file(len(data))
        return _decode_file(data, at_least, name)


def check_pixels(data: bytes, *, at_least: AtLeast) -> CheckedJpeg | None:
    """The bytes of an undamaged, upright JPEG of a usual kind, which any decoder turns into the same image.

    None for every other file, for whatever has damage, and for a JPEG that `decode_pixels` decodes at half its size
    or less, which is as fast: `decode_pixels` returns its pixels or names its damage. `at_least` is as there.
    """
    try:
        with _damage_named(), BUDGET.one_image():
            BUDGET.take_file(len(data))
            if _find_decoder(data[:HEADER_BYTES]) is not PlainJpegFile:
                return None
            with PlainJpegFile(io.BytesIO(data)) as image:
                if read_orientation(image.info) != 1 or eighths_of(image.size, 1, at_least) <= 4:
                    return None
                return check_jpeg(data, image)
    except ImageError:
        return None


def pixels_of(image: Image.Image) -> Pixels:
    """What `decode_pixels` makes of the file that Pillow opened as `image`; of an image made in memory, its pixels.

    The EXIF orientation in `image.info` is applied. Raises ImageError as `decode_pixels`.
    """
    with _damage_named(), BUDGET.one_image():
        require_size(image.size)
        if isinstance(image, TiffImageFile):
            return pixels_of_tiff(image)
        frame = first_frame_of(image)
        if isinstance(image, PngImageFile) and "transparency" in image.info and image.tile:
            color = scale_transparent_color(image)
            image = image.copy()  # the caller's is left as it is
            image.info["transparency"] = color
        image.load()
        return _finish(image, frame)


def _find_decoder(header: bytes) -> Opener | None:
    usual = next((decoder for magic, decoder in _DECODERS if re.match(magic, header, re.DOTALL)), None)
    return usual or find_opener(header)


def _decode_file(data: bytes, at_least: AtLeast | None, name: str) -> Pixels:
    if not data:
        raise ImageError("the file is empty")
    decoder = _find_decoder(data[:HEADER_BYTES])
    if reason := why_not_read(data, name, is_known=decoder is not None):
        raise ImageError(reason)
    if decoder is None:
        raise ImageError(f"not an image, or in a format other than {FORMATS}")
    if decoder is TiffImageFile:
        return decode_tiff(data)
    if decoder is PngImageFile:
        return _decode_png(data)
    with decoder(io.BytesIO(data)) as image:
        if isinstance(image, JpegImageFile):
            require_size(image.size, bytes_per_pixel=0)
            orientation = read_orientation(image.info)
            eighths = eighths_of(image.size, orientation, at_least)
            BUDGET.take(jpeg_memory(image, eighths))
            return turn_upright(decode_jpeg(data, image, eighths), orientation)
        require_size(image.size)
        frame = first_frame_of(image)
        image.load()
        if isinstance(image, WebPImageFile):
            require_whole_webp(data, image.size)
        return _finish(image, frame)


def _decode_png(data: bytes) -> Pixels:
    """As Pillow reads it; if that fails, without the metadata that may be the reason."""
    try:
        return _load_png(data, {})
    except ImageError:
        raise
    except _DAMAGE:
        bare = without_metadata(data)
        if bare is None:
            raise
        return _load_png(*bare)


def _load_png(data: bytes, info: dict[str | tuple[int, int], Any]) -> Pixels:
    with PngImageFile(io.BytesIO(data)) as image:
        require_size(image.size)
        if "transparency" in image.info:
            image.info["transparency"] = scale_transparent_color(image)
        image.load()
        require_whole_pixels(data)
        require_all_rows(data, np.asarray(image.crop((0, max(0, image.height - 2), *image.size))))
        image.info |= info
        return _finish(image, None)


def _finish(image: Image.Image, frame: FrameBox | None) -> Pixels:
    """The pixels of a loaded image, upright and on white; `frame` is where the first frame of a GIF lies."""
    pixels = np.array(to_rgb(image))
    clear_around(pixels, frame)
    return turn_upright(pixels, read_orientation(image.info))


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"over the limit of {PIXEL_LIMIT:,} pixels"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    detail = one_line(error)
    if bits := re.fullmatch(r"cannot handle (\d+)-bit layers", detail):
        return f"a JPEG of {bits[1]} bits per sample is not supported"
    if re.match("unsupported|unknown pixel mode|cannot handle", detail, re.IGNORECASE):
        return f"not supported ({detail})"
    return f"truncated or damaged image ({detail})"
