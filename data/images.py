"""Find images under a folder or in a list, and decode one of them to RGB; an image's key is its relative POSIX path.

A format is recognised by a file's first bytes, never by its name. Importing this module sets Pillow's pixel limit and
silences Pillow's warnings about damaged metadata for the whole process: a thread cannot do either for itself alone.
"""

import os
import posixpath
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile as PillowFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captionmill.data.errors import ImageError, InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PIXEL_LIMIT = 300_000_000  # 1.2 GB as RGB, more while transparency is resolved; a panorama of 100 million is fine

Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
warnings.filterwarnings("ignore", module=r"PIL\.")


class _PlainJpegFile(JpegImageFile):
    """A JPEG, or the first picture of an MPO, whose EXIF Pillow leaves unread: all it would take from it is the dpi."""

    def _read_dpi_from_exif(self) -> None:
        pass


_DECODERS: tuple[tuple[bytes, type[PillowFile]], ...] = (
    (rb"\xff\xd8\xff", _PlainJpegFile),
    (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    (rb"RIFF....WEBP", WebPImageFile),
    (rb"GIF8[79]a", GifImageFile),
    (rb"II[*+]\0|MM\0[*+]", TiffImageFile),
    (rb"BM.{13}\0\0\0", BmpImageFile),
)
_HEADER_BYTES = 18

# What Pillow may raise on a damaged file; Warning is for a caller who turns warnings into errors.
_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError, MemoryError),
    *(AssertionError, NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError, Warning),
)

_ORIENTATION_TAG, _BITS_TAG, _PHOTOMETRIC_TAG = 0x0112, 0x0102, 0x0106
_UPRIGHT = {  # EXIF orientation -> what turns the picture upright (Exif 2.32, 4.6.4 A)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageFile:
    """An image on disk that may turn out to be unreadable."""

    key: str
    """Relative POSIX path, or the line of a list; always valid UTF-8."""
    path: Path
    """Where to open it."""


def find_images(images: Path) -> list[ImageFile]:
    """The images of a folder and its subfolders, or of a UTF-8 text file with one path a line, sorted by key.

    In a folder, hidden entries are left out and a file without suffix counts when its first bytes are an image's.
    In a list, relative paths start at the list's own folder; a listed file that does not exist is kept, so that
    decoding it fails and is reported. Raises InputError when there is nothing to work on.
    """
    if is_folder := _is_folder(images):
        found = [ImageFile(image_key(os.path.relpath(path, images)), path) for path in _walk(images, ())]
        nothing = f"no image in this folder or below it; looked for {' '.join(IMAGE_SUFFIXES)}"
    else:
        found = [ImageFile(image_key(line), images.parent / line) for line in _read_list(images)]
        nothing = "the list is empty; write one image path a line"
    if not found:
        raise InputError(f"{images}: {nothing}")
    by_key = {image.key: image for image in found}
    if is_folder and len(by_key) < len(found):
        raise InputError(f"{images}: two names are the same in UTF-8 with forward slashes; rename one of the files")
    return [by_key[key] for key in sorted(by_key)]


def image_key(name: str) -> str:
    r"""The key of an image called `name`: forward slashes, no `./`, bytes that are not UTF-8 escaped as `\udce9`."""
    escaped = name.replace("\\", "/").encode("utf-8", "backslashreplace").decode("utf-8")
    return posixpath.normpath(escaped) if escaped else ""


def load_image(path: Path) -> Image.Image:
    """The image upright, in mode RGB, on white where it is transparent; the first frame or page where it has several.

    16-bit grey is scaled to 8 bits. Float grey takes as white the first of 1, 255 and 65535 that no pixel exceeds, else
    the largest pixel, and as black 0 and what is no number. Colour profiles are not applied.

    Raises ImageError with the reason when the file is missing, unreadable, not an image, damaged or over PIXEL_LIMIT.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError("a folder, not a file" if path.is_dir() else "not a regular file")
        with path.open("rb") as file:
            return _decode(file.read(_HEADER_BYTES), file)
    except ImageError:
        raise
    except _DAMAGE as exc:
        raise ImageError(_reason(exc)) from exc


def _walk(folder: Path, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Image files at and below `folder`; a link back to one of its `ancestors` (device, inode) is not followed."""
    try:
        status = folder.stat()
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as exc:
        raise InputError(f"{folder}: cannot list this folder ({exc.strerror}); make it readable or move it") from exc
    if (identity := (status.st_dev, status.st_ino)) in ancestors:
        return
    for entry in entries:
        path = Path(entry.path)
        if _is_folder(entry):
            yield from _walk(path, (*ancestors, identity))
        elif path.suffix.lower() in IMAGE_SUFFIXES or (not path.suffix and _has_image_header(path)):
            yield path


def _is_folder(entry: Path | os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that is closed to us: a file that cannot be read
        return False


def _read_list(list_path: Path) -> list[str]:
    expected = "expected a folder of images or a UTF-8 text file with one image path a line"
    try:
        text = list_path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise InputError(f"{list_path}: {reason}; {expected}") from exc
    if "\0" in text:
        raise InputError(f"{list_path}: not text; {expected}")
    return [line.strip().replace("\\", "/") for line in text.split("\n") if line.strip()]


def _has_image_header(path: Path) -> bool:
    with suppress(OSError):  # without a suffix and unreadable, nothing says that it is an image
        if path.is_file():  # opening a pipe would wait for ever
            with path.open("rb") as file:
                return _find_decoder(file.read(_HEADER_BYTES)) is not None
    return False


def _find_decoder(header: bytes) -> type[PillowFile] | None:
    return next((decoder for magic, decoder in _DECODERS if re.match(magic, header, re.DOTALL)), None)


def _decode(header: bytes, file: IO[bytes]) -> Image.Image:
    if not header:
        raise ImageError("the file is empty")
    decoder = _find_decoder(header)
    if decoder is None:
        raise ImageError("not an image, or in a format other than JPEG, PNG, WebP, BMP, GIF and TIFF")
    file.seek(0)
    with decoder(file) as image:
        width, height = image.size
        if width * height > PIXEL_LIMIT:
            raise ImageError(f"{width:,} x {height:,} pixels, over the limit of {PIXEL_LIMIT:,} pixels")
        if isinstance(image, PngImageFile) and "transparency" in image.info:
            image.info["transparency"] = _scale_transparent_color(image)
        image.load()
        rgb = _to_rgb(image)
        upright = _UPRIGHT.get(_read_orientation(image.info.get("exif", b"")))  # Pillow turns a TIFF itself
    rgb.info = {}  # without its EXIF, nobody turns it a second time
    return rgb if upright is None else rgb.transpose(upright)


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
    if tags.get(_PHOTOMETRIC_TAG) == 0:  # 0 is white; Pillow turns such pictures over only up to 8 bits
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
