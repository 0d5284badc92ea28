"""Opens images in further formats: HEIC, AVIF, JPEG 2000, Photoshop, and the PPM family."""

import io
import re
from collections.abc import Callable

from PIL import features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile as PillowFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.PsdImagePlugin import PsdImageFile

from captionmill.data.errors import ImageError, InputError
from captionmill.data.images.formats.background import DEPTH
from captionmill.data.images.formats.holes import boxes, require_whole_codestream, require_whole_heif
from captionmill.data.images.formats.kinds import family_of
from captionmill.data.optional import install_command, require

Opener = Callable[[io.BytesIO], PillowFile]

_MERGED_RESOURCE = 1057  # Adobe Photoshop File Formats Specification, Image Resource IDs: Version Info
_MULTICHANNEL = 7
_START_OF_CODESTREAM, _DEPTH_PLACE = b"\xff\x4f\xff\x51", 42  # ISO/IEC 15444-1, A.5.1: of the first component
_END_OF_CODESTREAM = b"\xff\xd9"  # ISO/IEC 15444-1, A.4.4


def find_opener(header: bytes) -> Opener | None:
    """What opens a file that begins with `header`; it raises ImageError if a package for that is missing."""
    if family := family_of(header):
        return {"AVIF": _open_avif, "HEIC": _open_heic}[family]
    return next((opener for magic, opener in _OPENERS if re.match(magic, header, re.DOTALL)), None)


def _open_heic(file: io.BytesIO) -> PillowFile:
    """The main image, which libheif turns upright itself: no orientation in the metadata counts then."""
    try:
        library = require("pillow_heif", extra="heif", needed_by="HEIC")
    except InputError as exc:
        raise ImageError(f"HEIC: {install_command('heif')}") from exc
    require_whole_heif(file.getvalue())
    try:
        image: PillowFile = library.HeifImageFile(file)
    except SyntaxError as exc:
        if str(exc).startswith("Unsupported"):
            raise ImageError(f"this kind of HEIC is not supported ({exc})") from exc
        raise
    image.info = {}
    return image


def _open_avif(file: io.BytesIO) -> PillowFile:
    """Pillow writes the rotation that the file asks for into the EXIF orientation, whatever that was before."""
    if not features.check("avif"):
        raise ImageError("AVIF is not supported by this build of Pillow; install its wheel: pip install -U pillow")
    require_whole_heif(file.getvalue())
    image = AvifImageFile(file)
    image.info.pop("xmp", None)  # no orientation but that of the file counts (ISO/IEC 23000-22, 7.3.6.7)
    return image


def _open_jpeg_2000(file: io.BytesIO) -> PillowFile:
    """JPEG 2000; Pillow makes up what is missing at the end, so the end mark must be there."""
    data = file.getvalue()
    ends = [end for kind, _, end in boxes(data) if kind == b"jp2c"] if data.startswith(b"\0\0\0\x0c") else [len(data)]
    whole = data[: ends[-1]].rstrip(b"\0") if ends else b""
    if not whole.endswith(_END_OF_CODESTREAM):
        raise EOFError("a part of the JPEG 2000 codestream is missing")
    require_whole_codestream(whole)
    image = Jpeg2KImageFile(file)
    image.info[DEPTH] = (whole[whole.index(_START_OF_CODESTREAM) + _DEPTH_PLACE] & 0x7F) + 1
    return image


class _MergedPsdFile(PsdImageFile):
    """The merged image of a Photoshop file, in which a fourth channel may be a saved selection."""

    def _open(self) -> None:
        header = self.fp.read(26) if self.fp else b""
        depth, mode = int.from_bytes(header[22:24], "big"), int.from_bytes(header[24:26], "big")
        if depth not in (1, 8):
            raise ImageError(f"PSD with {depth} bits per channel is not supported; save it with 8")
        if mode == _MULTICHANNEL:  # Pillow takes the first of its inks for an image in grey
            raise ImageError("PSD in multichannel mode is not supported; save it as RGB")
        if self.fp:
            self.fp.seek(0)
        super()._open()
        merged = next((data[4:5] for number, _, data in self.resources if number == _MERGED_RESOURCE), b"\1")
        if merged == b"\0":
            raise ImageError("PSD without a merged image; save it with maximum compatibility")
        if self.mode == "RGBA" and not self._has_transparency():
            self._mode, self.tile = "RGB", self.tile[:3]

    def _has_transparency(self) -> bool:
        """Whether the fourth channel is the transparency: then the number of layers is written as negative."""
        if self.fp is None or self._layers_position is None:
            return False
        place = self.fp.tell()
        self.fp.seek(self._layers_position)
        count = int.from_bytes(self.fp.read(2), "big", signed=True)
        self.fp.seek(place)
        return count < 0


_OPENERS: tuple[tuple[bytes, Opener], ...] = (
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", _open_jpeg_2000),
    (rb"8BPS\0\x01", _MergedPsdFile),
    (rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s", PpmImageFile),
)
