"""The description inside an image file: XMP, and IPTC where the format has it. The pixels are not touched.

XMP `dc:description` and IPTC `Caption/Abstract` are the same property in two standards (IPTC Photo Metadata Standard).
The property "description writer" records who wrote it, which distinguishes a person's description from ours.
"""

from pathlib import Path
from typing import Any, Literal

from captionmill.data.errors import ImageError
from captionmill.data.optional import require
from captionmill.data.regular import read_bytes

WRITER = "captionmill"

DescriptionState = Literal["missing", "same", "described", "unsupported"]
"""Must be written; is there already; a person or another program wrote one; the format cannot hold one."""

_XMP_TEXT = "Xmp.dc.description"
_XMP_WRITER = "Xmp.photoshop.CaptionWriter"
_IPTC_TEXT = "Iptc.Application2.Caption"
_IPTC_WRITER = "Iptc.Application2.Writer"
_IPTC_CHARSET = "Iptc.Envelope.CharacterSet"
_UTF_8 = "\x1b%G"


def require_metadata_library() -> Any:
    """The package exiv2; InputError if it is not installed."""
    exiv2 = require("exiv2", extra="metadata", needed_by="`embed_metadata`")
    exiv2.LogMsg.setLevel(exiv2.LogMsg.Level.mute)  # it prints warnings about camera errors to stderr
    return exiv2


def read_descriptions(path: Path) -> tuple[str, ...]:
    """The different descriptions in the image at `path` that is signed as described by captionmill: in XMP, in IPTC.

    Empty if it is not signed so, or its metadata cannot be read.
    """
    try:
        image = _open_metadata(path)
    except ImageError:
        return ()
    if not _takes(image, "Xmp") or _value(image.xmpData(), _XMP_WRITER) != WRITER:
        return ()
    found = (_description(image), _value(image.iptcData(), _IPTC_TEXT))
    return tuple(dict.fromkeys(text for text in found if text))


def check_description(path: Path, text: str, *, overwrite: bool = False) -> DescriptionState:
    """Whether the image at `path` needs the description `text`; with `overwrite`, one by others counts as missing.

    Raises ImageError if the file's metadata cannot be read.
    """
    image = _open_metadata(path)
    if not _takes(image, "Xmp"):
        return "unsupported"
    described = _description(image)
    is_ours = _value(image.xmpData(), _XMP_WRITER) == WRITER
    if described is not None and not is_ours and not overwrite:
        return "described"
    return "same" if is_ours and described == text else "missing"


def write_description(path: Path, text: str) -> None:
    """Write `text` into the image at `path`, replacing any description; ImageError if that fails."""
    exiv2 = require_metadata_library()
    image = _open_metadata(path)
    xmp, iptc = image.xmpData(), image.iptcData()
    xmp[_XMP_TEXT] = exiv2.LangAltValue({"x-default": text})
    xmp[_XMP_WRITER] = WRITER
    if _takes(image, "Iptc") and _is_utf_8(iptc):
        iptc[_IPTC_CHARSET] = _UTF_8
        iptc[_IPTC_TEXT] = text
        iptc[_IPTC_WRITER] = WRITER
    try:
        image.writeMetadata()
    except exiv2.Exiv2Error as exc:
        raise ImageError(f"its metadata cannot be written ({exc.args[-1]})") from exc
    content = image.io()
    content.open()
    path.write_bytes(bytes(content.mmap()))


def _takes(image: Any, kind: str) -> bool:
    exiv2 = require_metadata_library()
    return bool(image.checkMode(getattr(exiv2.MetadataId, kind)) == exiv2.AccessMode.ReadWrite)


def _open_metadata(path: Path) -> Any:
    exiv2 = require_metadata_library()
    try:
        content = read_bytes(path)
        image = exiv2.ImageFactory.open(content)  # not the path: exiv2 accepts only UTF-8 paths
        image.readMetadata()
    except OSError as exc:
        raise ImageError(exc.strerror.lower() if exc.strerror else str(exc)) from exc
    except exiv2.Exiv2Error as exc:
        raise ImageError(f"its metadata cannot be read ({exc.args[-1]})") from exc
    return image


def _description(image: Any) -> str | None:
    xmp, iptc = image.xmpData(), image.iptcData()
    if _XMP_TEXT in xmp:
        texts = dict(xmp[_XMP_TEXT].value())
        return str(texts.get("x-default") or next(iter(texts.values()), ""))
    return _value(iptc, _IPTC_TEXT)


def _value(data: Any, name: str) -> str | None:
    return str(data[name].toString()) if name in data else None


def _is_utf_8(iptc: Any) -> bool:
    """Whether the existing texts read the same as UTF-8."""
    return _value(iptc, _IPTC_CHARSET) == _UTF_8 or all(datum.toString().isascii() for datum in iptc)
