"""Zeros where pixels were are a reason, never pixels; zeros that belong to a sound file are no damage."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image

from captionmill.data.errors import ImageError
from captionmill.data.images.decode import decode_pixels

SCENE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (24, 32, 3), np.uint8)).resize((256, 192))
WITH_ALPHA = SCENE.copy()
WITH_ALPHA.putalpha(SCENE.convert("L"))
PAGE = Image.new("RGB", (640, 480), "white")
PAGE.paste(SCENE.resize((64, 48)), (30, 30))


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if image_format == "HEIF":
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, image_format, **options)
    return buffer.getvalue()


def reason_of(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode_pixels(content)
    return str(caught.value)


@pytest.mark.parametrize(
    ("image", "image_format", "options"),
    [
        (SCENE, "JPEG", {"quality": 95}),
        (SCENE, "JPEG", {"quality": 85, "optimize": True}),
        (SCENE, "JPEG", {"quality": 95, "progressive": True}),
        (SCENE.convert("L"), "JPEG", {"quality": 95, "optimize": True}),
        (SCENE, "HEIF", {"quality": 80}),
        (SCENE, "AVIF", {"quality": 90, "speed": 10}),
        (SCENE, "WEBP", {"quality": 90}),
        (SCENE, "WEBP", {"lossless": True}),
        (WITH_ALPHA, "WEBP", {"quality": 90}),
        (SCENE, "WEBP", {"save_all": True, "append_images": [PAGE.resize(SCENE.size)]}),
        (SCENE, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (SCENE.convert("1"), "TIFF", {"compression": "group4"}),
        (SCENE, "TIFF", {"compression": "packbits"}),
        (SCENE, "TIFF", {"compression": "tiff_lzw"}),
        (SCENE, "TIFF", {"compression": "jpeg", "quality": 95}),
        (SCENE, "JPEG2000", {"irreversible": True}),
        (SCENE, "JPEG2000", {"precinct_size": (64, 64), "num_resolutions": 2}),
    ],
)
def test_a_hole_or_an_end_of_zeros_is_refused(image: Image.Image, image_format: str, options: dict[str, Any]) -> None:
    content = encode(image, image_format, **options)
    decode_pixels(content)
    for share in (0.3, 0.4):
        start, length = int(len(content) * share), 600
        reason = reason_of(content[:start] + bytes(length) + content[start + length :])
        assert reason.startswith("truncated or damaged image ("), reason
    assert reason_of(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def test_an_erased_block_of_a_million_bytes_in_a_jpeg_is_refused_at_once() -> None:
    """Flash memory that was erased is all ones; among them the end of the scan is looked for."""
    content = encode(SCENE, "JPEG", quality=95)
    half = len(content) // 2
    assert reason_of(content[:half] + b"\xff" * 1_000_000 + content[half:]).startswith("truncated or damaged image (")


@pytest.mark.parametrize(
    "options",
    [{"quality": 100, "method": 0}, {"quality": 20}, {"lossless": True, "method": 0}, {"lossless": True, "method": 4}],
)
def test_sound_webps_with_many_zeros_are_read(options: dict[str, Any]) -> None:
    longest = 0
    for image in (PAGE, PAGE.rotate(180), Image.new("RGB", (1200, 1000), "white")):
        content = encode(image, "WEBP", **options)
        with Image.open(io.BytesIO(content)) as opened:
            np.testing.assert_array_equal(decode_pixels(content), np.asarray(opened.convert("RGB")))
        longest += bytes(64) in content
    assert longest or options.get("quality") == 20 or options.get("method") == 4


def test_sound_jpegs_with_many_zeros_are_read() -> None:
    page = PAGE.resize((1600, 1200), Image.Resampling.NEAREST)
    for content in (
        encode(page, "JPEG", optimize=True),
        encode(page, "JPEG", optimize=True, progressive=True),
        encode(SCENE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(9000)),
    ):
        assert bytes(256) in content
        with Image.open(io.BytesIO(content)) as opened:
            np.testing.assert_array_equal(decode_pixels(content), np.asarray(opened))


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("slope", [0, 1])
def test_flat_and_evenly_rising_areas_are_no_holes(level: int, slope: int) -> None:
    """Their codes are zeros in each of these, as far as the longest runs go that such images have."""
    ramp = Image.fromarray((level + slope * np.arange(800)[None].repeat(600, 0) // 4).astype(np.uint8)).convert("RGB")
    for image_format, options in (
        ("JPEG", {"quality": 100, "optimize": True}),
        ("JPEG", {"quality": 20, "progressive": True}),
        ("JPEG2000", {"codeblock_size": (4, 4)}),
        ("JPEG2000", {"quality_mode": "rates", "quality_layers": [9000] * 40 + [10]}),
        ("TIFF", {"compression": "zlib"}),
        ("TIFF", {"compression": "jpeg"}),
    ):
        found = decode_pixels(encode(ramp, image_format, **options))
        assert np.abs(found - np.asarray(ramp, float)).mean() < 4
    bilevel = ramp.convert("1")
    found = decode_pixels(encode(bilevel, "TIFF", compression="group4"))
    np.testing.assert_array_equal(found, np.asarray(bilevel.convert("RGB")))


def test_a_hole_of_few_bytes_in_a_page_of_group_4_is_refused() -> None:
    content = encode(SCENE.convert("1"), "TIFF", compression="group4")
    middle = len(content) // 3
    reason = reason_of(content[:middle] + bytes(12) + content[middle + 12 :])
    assert reason == "truncated or damaged image (a part of it is zeros)"


def test_zeros_in_the_metadata_of_a_heic_are_no_damage() -> None:
    pixels = decode_pixels(encode(SCENE, "HEIF"))
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + bytes(20_000)
    content = encode(SCENE, "HEIF", exif=exif)
    assert bytes(8192) in content
    np.testing.assert_array_equal(decode_pixels(content), pixels)
    free = (9008).to_bytes(4) + b"free" + bytes(9000)
    np.testing.assert_array_equal(decode_pixels(encode(SCENE, "HEIF") + free), pixels)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def make_png(stream: bytes, *, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, interlace)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(stream)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("interlace", "needed"), [(0, 200), (1, 207)])
def test_png_whose_whole_stream_lacks_rows_is_refused_and_a_black_one_is_read(interlace: int, needed: int) -> None:
    assert not decode_pixels(make_png(bytes(needed), interlace=interlace)).any()
    assert reason_of(make_png(bytes(needed - 25), interlace=interlace)) == (
        "truncated or damaged image (rows are missing)"
    )
    assert reason_of(make_png(bytes(needed - 1), interlace=interlace)).startswith("truncated or damaged image (")
    grey = (b"\0" + bytes([99]) * 24) * 5
    assert reason_of(make_png(grey)) == "truncated or damaged image (rows are missing)"


def test_png_of_an_iphone_app_is_named() -> None:
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", bytes(4)) + make_png(bytes(200))[8:]
    assert reason_of(content) == "a PNG of an iPhone app (CgBI) is not supported; convert it to JPEG or PNG"


def test_tiff_whose_old_jpeg_is_no_strip_is_read() -> None:
    jpeg = encode(SCENE, "JPEG", quality=95)
    tags = {256: SCENE.width, 257: SCENE.height, 258: 8, 259: 6, 262: 6, 277: 3, 513: 8, 514: len(jpeg)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = (
        struct.pack("<2sHI", b"II", 42, 8 + len(jpeg)) + jpeg + struct.pack("<H", len(tags)) + directory + bytes(4)
    )
    assert np.abs(decode_pixels(content) - decode_pixels(jpeg).astype(float)).mean() < 8  # chroma is enlarged otherwise


def test_tiff_with_a_tile_that_was_never_written_is_refused() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.array(SCENE), photometric="rgb", tile=(64, 64), byteorder="<")
    content = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        offsets = file.pages.first.tags["TileOffsets"].valueoffset
    content[offsets + 4 : offsets + 8] = bytes(4)
    assert reason_of(bytes(content)) == "truncated or damaged image (a strip or a tile is missing)"


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"planarconfig": "separate"}, {"tile": (64, 64)}])
def test_tiff_that_lacks_strips_or_tiles_is_refused(options: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    options = {"photometric": "rgb", **options}
    pixels = np.array(SCENE)
    if options.get("planarconfig") == "separate":
        pixels = np.moveaxis(pixels, 2, 0)
    tifffile.imwrite(buffer, pixels, byteorder="<", compression=options.pop("compression", None), **options)
    content = bytearray(buffer.getvalue())
    np.testing.assert_array_equal(decode_pixels(bytes(content)), np.array(SCENE))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        entry = file.pages.first.tags["ImageLength"].offset
    content[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, 2 * SCENE.height)
    assert reason_of(bytes(content)) == "truncated or damaged image (a strip or a tile is missing)"
