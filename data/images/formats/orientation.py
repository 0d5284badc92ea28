"""The orientation of an image, from the EXIF or XMP in it, and the turn that makes the image upright."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

_ORIENTATION_TAG = 0x0112
_EXIF_PREFIX = b"Exif\0\0"
_SIZES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}  # bytes of the integer types of TIFF 6.0, section 2
_UPRIGHT = {  # EXIF orientation -> the operation that makes the image upright (Exif 2.32, 4.6.4 A)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>\s*)([1-8])\b")
XMP_KEYS = ("xmp", "XML:com.adobe.xmp", "Raw profile type xmp")
RAW_EXIF_KEYS = ("Raw profile type exif", "Raw profile type APP1")
"""Where ImageMagick keeps the EXIF of a PNG, as hexadecimal text; APP1 holds EXIF or XMP."""

_KEYS = {"exif", *XMP_KEYS, *RAW_EXIF_KEYS}


def read_orientation(info: Mapping[Any, Any]) -> int:
    """The EXIF orientation, 1 to 8, in the `info` of an image that Pillow opened; 1 if absent or damaged.

    EXIF goes before XMP; the EXIF of a PNG may be a chunk or a raw profile.
    """
    if _KEYS.isdisjoint(info):
        return 1
    raw = [_from_hex(info[key]) for key in RAW_EXIF_KEYS if key in info]
    for exif in (info.get("exif", b""), *raw):
        if isinstance(exif, bytes) and (orientation := _read_exif(exif)):
            return orientation
    for text in (*(info[key] for key in XMP_KEYS if key in info), *raw):
        packet = text.encode("utf-8", "replace") if isinstance(text, str) else text
        if isinstance(packet, bytes):
            found = _XMP.search(packet) or _XMP.search(_from_hex(packet))
            if found:
                return int(found[1])
    return 1


def turn_upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """[H, W, 3] pixels of this EXIF orientation, made upright."""
    upright = _UPRIGHT.get(orientation)
    return pixels if upright is None else np.array(Image.fromarray(pixels).transpose(upright))


def _read_exif(exif: bytes) -> int:
    """The orientation in raw EXIF, 0 where it is absent or damaged (TIFF 6.0, section 2: 12-byte entries)."""
    tiff = exif
    while tiff.startswith(_EXIF_PREFIX):  # some programs write it twice
        tiff = tiff.removeprefix(_EXIF_PREFIX)
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    start = int.from_bytes(tiff[4:8], order) + 2
    end = start + 12 * int.from_bytes(tiff[start - 2 : start], order)
    for entry in range(start, min(end, len(tiff)), 12):
        if int.from_bytes(tiff[entry : entry + 2], order) == _ORIENTATION_TAG:
            size = _SIZES.get(int.from_bytes(tiff[entry + 2 : entry + 4], order), 2)
            value = int.from_bytes(tiff[entry + 8 : entry + 8 + size], order)
            return value if 1 <= value <= 8 else 0
    return 0


def _from_hex(profile: str | bytes) -> bytes:
    """The bytes in a raw profile: a name, their count, and lines of hexadecimal digits; empty for other text."""
    text = profile.decode("latin-1") if isinstance(profile, bytes) else profile
    digits = "".join(text.split("\n")[3:]).strip()
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""
