"""TIFFs: by Pillow where it decodes what was written, else by tifffile.

Pillow misreads separate planes of 16 bits or with alpha, compressed big-endian samples that are signed or floats, and
unsigned 32-bit samples; `benchmarks/tiffs.py` finds these. It leaves out the predictor of PackBits, and does not open
floats, signed or 32-bit samples in colour.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL.TiffImagePlugin import TiffImageFile

from captionmill.data.errors import ImageError
from captionmill.data.images.formats.background import to_rgb
from captionmill.data.images.formats.holes import require_whole_strips
from captionmill.data.images.formats.limits import require_size, require_small_tile
from captionmill.data.images.formats.tiff_samples import decode_samples, find_page

# Tags and values (TIFF 6.0, section 8)
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _FORMAT = 258, 259, 262, 277, 284, 338, 339
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE = 254, 255
_PREDICTOR, _TILE_WIDTH, _TILE_LENGTH = 317, 322, 323
_RGB, _CMYK, _YCBCR = 2, 5, 6
_WEBP = 50001  # Pillow's libtiff is built without it
_PACKBITS = 32773
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3


def decode_tiff(data: bytes, *, page: int | None = None) -> npt.NDArray[np.uint8]:
    """One page of a TIFF, upright, [H, W, 3] uint8 RGB on white; by default the first that is no thumbnail or mask.

    Raises ImageError with the reason, or whatever Pillow raises.
    """
    try:
        image = TiffImageFile(io.BytesIO(data))
    except (SyntaxError, LookupError, TypeError, ValueError, OSError):
        return decode_samples(data, page)
    with image:
        if page is None:
            page = find_page(data) if _is_aside(image) else 0
        image.seek(page)
        require_size(image.size)
        is_read_by_pillow = _is_read_by_pillow(image)
        require_whole_strips(data, image)
        if not is_read_by_pillow:
            return decode_samples(data, page)
        image.load()  # Pillow makes it upright
        return decode_samples(data, page) if _looks_too_dark(image) else np.array(to_rgb(image))


def _is_aside(image: TiffImageFile) -> bool:
    """Whether a page is marked as a reduced image of another or as a transparency mask (TIFF 6.0, section 8)."""
    return bool(int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & 5) or image.tag_v2.get(_SUBFILE_TYPE) == 2


def pixels_of_tiff(image: TiffImageFile) -> npt.NDArray[np.uint8]:
    """What `decode_tiff` makes of the page that Pillow opened as `image`.

    Raises ImageError if it is loaded already and Pillow misreads its kind.
    """
    if not image.tile or image.fp is None:
        if not _is_read_by_pillow(image):
            raise ImageError("a TIFF of a kind that Pillow misreads, loaded already; give the file, or open it again")
        return np.array(to_rgb(image))
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    return decode_tiff(data, page=image.tell())


def _is_read_by_pillow(image: TiffImageFile) -> bool:
    """Whether Pillow decodes the file that it opened as `image` to what was written.

    Raises ImageError for a tile that would waste memory.
    """
    tags = image.tag_v2
    bits, formats = tags.get(_BITS, (1,)), tags.get(_FORMAT, (_UNSIGNED,))
    sample_bytes = -(-max(bits) // 8) * tags.get(_SAMPLES, 1)
    require_small_tile(image.size, (tags.get(_TILE_WIDTH), tags.get(_TILE_LENGTH)), sample_bytes=sample_bytes)
    has_unread_predictor = tags.get(_COMPRESSION) == _PACKBITS and tags.get(_PREDICTOR, 1) != 1
    if tags.get(_COMPRESSION) == _WEBP or has_unread_predictor:
        return False
    is_raw, is_one_sample = tags.get(_COMPRESSION, 1) == 1, tags.get(_SAMPLES, 1) == 1
    if set(formats) == {_UNSIGNED} and max(bits) <= 16:
        if is_one_sample or tags.get(_PLANAR, 1) == 1:
            return True
        is_color = tags.get(_PHOTOMETRIC) in (_RGB, _CMYK, _YCBCR)
        return is_color and not tags.get(_EXTRA) and (max(bits) <= 8 or not is_raw)
    is_in_order = is_raw or tags.prefix == b"II"
    return is_one_sample and is_in_order and formats in ((_SIGNED,), (_FLOAT,)) and bits in ((16,), (32,))


def _looks_too_dark(image: TiffImageFile) -> bool:
    """Whether `image`, decoded by Pillow from 16-bit RGB, may have levels of 12 bits or fewer; Pillow drops eight."""
    if image.tag_v2.get(_PHOTOMETRIC) != _RGB or max(image.tag_v2.get(_BITS, (8,))) != 16:
        return False
    bands = image.convert("RGB").getextrema()
    return max(int(band[1]) for band in bands if isinstance(band, tuple)) <= 4095 >> 8
