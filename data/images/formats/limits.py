"""How large an image may be, checked before memory is taken for it."""

from captionmill.data.errors import ImageError
from captionmill.data.images.memory import BUDGET

PIXEL_LIMIT = 300_000_000  # 1.2 GB as RGB, more while transparency is resolved; a panorama of 100 million is fine
BYTES_PER_PIXEL = 24  # while an image becomes RGB; measured with Pillow 12: at most 22, of a WebP with transparency
_MOST_TILE_BYTES = 64_000_000  # of a tile that is larger than its image
_PADDING = 255  # pixels, of a tile that covers its image
_MOST_SAMPLE_BYTES = 8 * PIXEL_LIMIT


def require_size(size: tuple[int, int], *, sample_bytes: int = 1, bytes_per_pixel: int = BYTES_PER_PIXEL) -> None:
    """Raise ImageError if an image of `size`, width and height, has no pixels or too many; wait for its memory.

    `sample_bytes` are those of all samples of a pixel, with those that are not shown; `bytes_per_pixel` is the memory.
    """
    width, height = size
    if width * height > PIXEL_LIMIT or width * height * sample_bytes > _MOST_SAMPLE_BYTES:
        depth = f" of {sample_bytes} bytes" if width * height <= PIXEL_LIMIT else ""
        raise ImageError(f"{width:,} x {height:,} pixels{depth}, over the limit of {PIXEL_LIMIT:,} pixels")
    if not width * height:
        raise ImageError("an image without pixels")
    BUDGET.take(width * height * max(bytes_per_pixel, 4 * sample_bytes))


def require_small_tile(size: tuple[int, int], tile: tuple[object, object], *, sample_bytes: int) -> None:
    """Raise ImageError if a tile (width, height) is so much larger than the image that it would waste memory.

    Waits for the memory of both.
    """
    (width, height), (tile_width, tile_height) = size, tile
    if not isinstance(tile_width, int) or not isinstance(tile_height, int):
        return
    if tile_width * tile_height * sample_bytes > max(
        _MOST_TILE_BYTES, (width + _PADDING) * (height + _PADDING) * sample_bytes
    ):
        shape = f"{tile_width:,} x {tile_height:,}"
        raise ImageError(f"a tile of {shape} pixels for an image of {width:,} x {height:,} pixels")
    needed = width * height * max(BYTES_PER_PIXEL, 4 * sample_bytes)
    BUDGET.take(needed + tile_width * tile_height * sample_bytes)
