"""Opens images in further formats: HEIC, AVIF, JPEG 2000, Photoshop, and the PPM family."""

import io
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImagePalette, features
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
_SIGNED = 0x80
_YCC_BOX = rb"colr\x01..\0\0\0\x12"  # I.5.3.3: sYCC
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


def _open_ppm(file: io.BytesIO) -> PillowFile:
    """One whitespace ends the header; behind two, or a comment, Pillow would read all pixels shifted."""
    image, data = PpmImageFile(file), file.getvalue()
    (tile,) = image.tile
    if data[1:2] in b"456" and (data[tile.offset - 1 :][:2] == b"\r\n" or data[tile.offset :][:1] == b"#"):
        is_deep = image.mode == "I" or (isinstance(tile.args, tuple) and tile.args[1] > 255)
        row_bytes = (image.width + 7) // 8 if image.mode == "1" else image.width * len(image.getbands()) * (1 + is_deep)
        if len(data) - tile.offset > row_bytes * image.height:
            raise ImageError("its header ends with more than one whitespace, so the first pixel is not known")
    return image


def _open_jpeg_2000(file: io.BytesIO) -> PillowFile:
    """JPEG 2000; Pillow makes up what is missing at the end, so the end mark must be there."""
    data = file.getvalue()
    ends = [end for kind, _, end in boxes(data) if kind == b"jp2c"] if data.startswith(b"\0\0\0\x0c") else [len(data)]
    whole = data[: ends[-1]].rstrip(b"\0") if ends else b""
    if not whole.endswith(_END_OF_CODESTREAM):
        raise EOFError("a part of the JPEG 2000 codestream is missing")
    require_whole_codestream(whole)
    start = whole.index(_START_OF_CODESTREAM) + _DEPTH_PLACE
    if whole[start] & _SIGNED:
        raise ImageError("JPEG 2000 with signed levels: which of them is black is not known")
    count = int.from_bytes(whole[start - 2 : start], "big")
    return _Jpeg2000File(data, [(depth & ~_SIGNED) + 1 for depth in whole[start : start + 3 * count : 3]])


class _Jpeg2000File(Jpeg2KImageFile):
    """JPEG 2000 with other than 8 bits per sample, or with a palette.

    Pillow shifts samples to 8 bits: those of fewer bits never become white, and those of more are rounded, so that the
    lightest become 256, and that black. It takes equal colours of a palette for one, and shifts the numbers of colours.
    """

    def __init__(self, data: bytes, depths: Sequence[int]) -> None:
        """`depths` are the bits per sample of the first components."""
        super().__init__(io.BytesIO(data))
        self.info[DEPTH] = depths[0]
        self._content, self._depths = data, depths[: len(self.getbands())]
        if self.mode in ("P", "PA"):
            self.palette = _read_palette(data)
        elif self.mode == "L" and depths[0] > 8:  # nine bits
            self._mode = "I;16"

    def load(self) -> Any:
        if self.tile:
            super().load()
            if self.mode != "I;16" and any(depth != 8 for depth in self._depths):
                self._scale(self._content)
        return super().load()

    def _scale(self, data: bytes) -> None:
        """Make the largest level of each component 255."""
        pixels = np.array(self).reshape(self.height, self.width, -1)
        samples = None
        for place, depth in enumerate(self._depths):
            band = pixels[..., place]
            if depth < 8:
                band >>= 8 - depth
                if place or self.palette is None:
                    band[:] = np.rint(band * (255 / (2**depth - 1)))
            elif depth > 8 and not band.all():
                if samples is None:
                    samples = _decode_jpeg_2000(data, depth).reshape(self.height, self.width, -1)
                band[(band == 0) & (samples[..., place] >> (depth - 1) > 0)] = 255
        self.im = Image.frombytes(self.mode, self.size, pixels.tobytes()).im
        if self.palette is not None:
            self.palette.dirty = 1


def _read_palette(jpeg_2000: bytes) -> ImagePalette.ImagePalette:
    """The colours as they are in the file, ISO/IEC 15444-1, I.5.3.4: Pillow leaves out those that it has already."""
    start = jpeg_2000.index(b"pclr") + 4
    count, columns = struct.unpack_from(">HB", jpeg_2000, start)
    values = start + 3 + columns
    if any(depth != 7 for depth in jpeg_2000[start + 3 : values]):
        raise ImageError("JPEG 2000 with a palette of other than 8 bits is not supported")
    palette = ImagePalette.ImagePalette("RGBA" if columns == 4 else "RGB", jpeg_2000[values : values + count * columns])
    palette.dirty = 1
    return palette


def _decode_jpeg_2000(jpeg_2000: bytes, depth: int) -> npt.NDArray[np.integer]:
    """The samples as written, [H, W, S]."""
    if re.search(_YCC_BOX, jpeg_2000, re.DOTALL):
        raise ImageError(f"JPEG 2000 of YCbCr with {depth} bits is not supported")
    try:
        library = require("imagecodecs", extra="tiff", needed_by="JPEG 2000")
    except InputError as exc:
        raise ImageError(
            f"colours of {depth} bits in JPEG 2000 need imagecodecs; run: {install_command('tiff')}"
        ) from exc
    try:
        samples: npt.NDArray[np.integer] = library.jpeg2k_decode(jpeg_2000)
    except (RuntimeError, ValueError) as exc:
        raise ImageError(f"this kind of JPEG 2000 with {depth} bits is not supported ({exc})") from exc
    return samples


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
    (rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s", _open_ppm),
)
