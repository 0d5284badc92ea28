"""TIFFs by tifffile: samples of any type in any layout, as 8-bit RGB. imagecodecs is needed for some compressions."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from captionmill.data.errors import ImageError
from captionmill.data.images.formats.background import to_rgb
from captionmill.data.images.formats.levels import scale_levels
from captionmill.data.images.formats.limits import require_size, require_small_tile
from captionmill.data.images.formats.orientation import read_orientation, turn_upright
from captionmill.data.optional import install_command

Samples = npt.NDArray[Any]

_ORIENTATION, _XMP = 274, 700
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_JPEG = 7
_PREMULTIPLIED, _ALPHA = 1, 2

# What tifffile raises for a damaged file, or where imagecodecs is missing, beside its own error
_TIFFFILE_ERRORS = (
    *(ImportError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RuntimeError),
)

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it reports damaged metadata, which is not needed


def decode_samples(data: bytes, page_number: int | None = None) -> npt.NDArray[np.uint8]:
    """One page of a TIFF, upright, [H, W, 3] uint8 RGB on white; by default the first that is no thumbnail or mask.

    Raises ImageError with the reason, ValueError if it is damaged.
    """
    with _open_tiff(data) as file:
        page: Any = file.pages[_find_page(file) if page_number is None else page_number]
        _require_supported(page)
        try:
            image = _compose(page, _read_page(page))
        except _TIFFFILE_ERRORS as exc:
            if not (isinstance(exc, ImportError) or "imagecodecs" in str(exc)):
                raise
            raise ImageError(f"{_name(page)} needs the package imagecodecs; run: {install_command('tiff')}") from exc
        orientation = page.tags.valueof(_ORIENTATION)
        if orientation not in range(2, 9):
            orientation = read_orientation({"xmp": page.tags.valueof(_XMP)})
    return turn_upright(np.array(to_rgb(image)), int(orientation))


def find_page(data: bytes) -> int:
    """The number of the first page that is no thumbnail or mask; 0 if there is none.

    Raises ImageError if the image is in a directory below its thumbnail, ValueError if the file is damaged.
    """
    with _open_tiff(data) as file:
        return _find_page(file)


@contextmanager
def _open_tiff(data: bytes) -> Iterator[Any]:
    """A TIFF, as tifffile opens it, during the block; ValueError for whatever tifffile raises there."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            yield file
    except ImageError:
        raise
    except (tifffile.TiffFileError, *_TIFFFILE_ERRORS) as exc:
        raise ValueError(str(exc)) from exc


def _find_page(file: Any) -> int:
    pages = enumerate(file.pages)
    found = next((number for number, page in pages if not (page.is_reduced or page.is_mask)), None)
    if found is None and file.pages[0].subifds:
        raise ImageError("a TIFF whose pages are thumbnails of images in directories below them is not supported")
    return found or 0


def _name(page: Any) -> str:
    """A page in words, as in `a float64 TIFF (LZW)`."""
    kind = f"{page.dtype}" if page.dtype is not None else f"{page.bitspersample}-bit"
    compression = getattr(page.compression, "name", page.compression)
    return f"{kind} TIFF" if page.compression == 1 else f"{kind} TIFF ({compression})"


def _require_supported(page: Any) -> None:
    """Raise ImageError if the samples of a page have no meaning as an image, or would take too much memory."""
    photometric = getattr(page.photometric, "name", page.photometric)
    size = (page.imagewidth, page.imagelength)
    if page.dtype is None or page.dtype.kind not in "uif" or isinstance(page.bitspersample, tuple):
        raise ImageError(f"{_name(page)} is not supported")
    is_known = page.photometric in _COLORS and (page.photometric != _YCBCR or page.compression == _JPEG)
    if not is_known or page.samplesperpixel < _COLORS[page.photometric] or max(page.imagedepth, page.tiledepth) > 1:
        raise ImageError(f"{_name(page)} of {photometric} with {page.samplesperpixel} samples is not supported")
    if page.dtype.kind == "i" and (page.photometric != _BLACK_IS_ZERO or _alpha_of(page)):
        raise ImageError(f"{_name(page)} of {photometric} is not supported: signed samples are read as grey only")
    sample_bytes = page.samplesperpixel * page.dtype.itemsize
    require_size(size, sample_bytes=sample_bytes)
    if page.is_tiled:
        require_small_tile(size, (page.tilewidth, page.tilelength), sample_bytes=sample_bytes)


def _read_page(page: Any) -> Samples:
    """[H, W, S] as written. Raises ValueError if a strip or a tile is missing or short."""
    planes, _, height, width, samples = page.shaped
    values: Samples = np.zeros((planes, height, width, samples), page.dtype)
    covered = np.zeros((planes, height, width), bool)
    for segment, (plane, _, top, left, _), _ in page.segments(maxworkers=1):
        if segment is None:
            raise ValueError("a strip or a tile is missing")
        part = segment[0, : height - top, : width - left]
        area = (plane, slice(top, top + part.shape[0]), slice(left, left + part.shape[1]))
        values[area] = part
        covered[area] = True
    if not covered.all():
        raise ValueError("a strip or a tile is missing")
    return values[0] if planes == 1 else np.moveaxis(values[..., 0], 0, 2)


def _compose(page: Any, values: Samples) -> Image.Image:
    """The image that the samples [H, W, S] show, in mode RGB, RGBA, RGBa or CMYK."""
    photometric, count, alpha_kind = page.photometric, _COLORS[page.photometric], _alpha_of(page)
    colors = values[..., :count]
    if photometric == _PALETTE:
        levels = (np.asarray(page.colormap)[:, colors[..., 0]] >> 8).astype(np.uint8).transpose(1, 2, 0)
    else:
        is_joint = alpha_kind == _PREMULTIPLIED
        levels = _to_8_bits(colors, page.bitspersample, values[..., : count + 1] if is_joint else colors)
    if photometric == _WHITE_IS_ZERO:
        levels = 255 - levels
    if photometric == _CMYK:
        return Image.frombytes("CMYK", (levels.shape[1], levels.shape[0]), levels.tobytes())
    if levels.shape[2] == 1:
        levels = levels.repeat(3, axis=2)
    if not alpha_kind:
        return Image.fromarray(np.ascontiguousarray(levels))
    alpha = values[..., count : count + 1]
    mode = "RGBa" if alpha_kind == _PREMULTIPLIED else "RGBA"
    peaks = values[..., : count + 1] if mode == "RGBa" else alpha
    with_alpha = np.concatenate([levels, _to_8_bits(alpha, page.bitspersample, peaks)], axis=2)
    image = Image.frombytes(mode, (with_alpha.shape[1], with_alpha.shape[0]), with_alpha.tobytes())
    return image.convert("RGBA")


def _alpha_of(page: Any) -> int:
    """_ALPHA or _PREMULTIPLIED if the sample after the colours is of that kind, else 0."""
    if page.samplesperpixel <= _COLORS[page.photometric]:
        return 0
    if not page.extrasamples:
        return _ALPHA if page.photometric == _RGB and page.samplesperpixel == 4 else 0  # as Pillow reads it
    kind = int(page.extrasamples[0])
    return kind if kind in (_ALPHA, _PREMULTIPLIED) else 0


def _to_8_bits(values: Samples, bits: int, peak_of: Samples) -> npt.NDArray[np.uint8]:
    """Levels of `bits` as 8 bits; 16-bit colours lose their lower byte, as in Pillow, unless they have 12 bits only."""
    if values.dtype.kind == "u" and bits < 16:
        return values.astype(np.uint8) if bits == 8 else scale_levels(values, (2**bits - 1,))
    if values.dtype == np.uint16 and values.shape[2] > 1 and int(peak_of.max(initial=0)) > 4095:
        return np.right_shift(values, 8).astype(np.uint8)
    return scale_levels(values, peak_of=peak_of)
