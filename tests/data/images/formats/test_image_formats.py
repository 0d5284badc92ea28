"""An image has the pixels that were written, or a reason, in every format; damage is accepted by the rule."""

import io
import logging
import re
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
import tifffile
from builders import ROOT, TESTS
from PIL import Image

from captionmill.data.errors import ImageError
from captionmill.data.images.decode import decode_pixels, pixels_of
from captionmill.data.images.formats.jpeg_damage import MOST_DAMAGED
from captionmill.data.images.tar import list_members

Pixels = npt.NDArray[np.uint8]
CASES = TESTS / "cases" / "images"
ORIENTATION = 0x0112
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def read(name: str) -> bytes:
    return (CASES / name).read_bytes()


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def encode_tiff(array: npt.NDArray[np.generic], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def encode_jpeg_2000(array: npt.NDArray[np.generic], bits: int, **options: Any) -> bytes:
    content = imagecodecs.jpeg2k_encode(
        array, bitspersample=bits, reversible=True, level=0, **{"codecformat": "jp2", **options}
    )
    return bytes(content)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def add_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """`png` with one more chunk after its header."""
    return png[:33] + chunk(kind, content) + png[33:]


def reason_of(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode_pixels(content)
    return str(caught.value)


def greys_of(content: bytes) -> list[int]:
    levels: list[int] = decode_pixels(content)[0, :, 0].tolist()
    return levels


SCENE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (6, 8, 3), np.uint8)).resize((64, 48))
WRITTEN = np.moveaxis(tifffile.imread(CASES / "uint16-rgb-planar.tif") >> 8, 0, 2)  # the image of most cases


@pytest.mark.parametrize(
    "name",
    ["float32-rgb.tif", "uint16-rgb-planar.tif", "v4-bitfields-alpha0.bmp", "text-2MB-ztxt.png", "text-bad-crc.png"],
)
def test_image_in_an_unusual_file_has_the_pixels_that_were_written(name: str) -> None:
    assert WRITTEN.shape == (64, 96, 3)
    np.testing.assert_array_equal(decode_pixels(read(name)), WRITTEN)


def test_orientation_of_the_cases_is_applied() -> None:
    np.testing.assert_array_equal(decode_pixels(read("png-xmp-orient.png")), np.rot90(WRITTEN, -1))
    lying = decode_pixels(read("no-eoi-trailing-nul.jpg"))  # the same JPEG without its orientation
    np.testing.assert_array_equal(decode_pixels(read("orient6-long-be.jpg")), np.rot90(lying, -1))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("int8-grey.tif", "signed levels from -128 to 127: which of them is black is not known"),
        ("12bit.jpg", "a JPEG of 12 bits per sample is not supported"),
        ("tile-of-23000.tif", "a tile of 23,000 x 23,000 pixels for an image of 16 x 16 pixels"),
    ],
)
def test_case_that_cannot_be_read_says_why(name: str, reason: str) -> None:
    assert reason_of(read(name)) == reason


# Levels of more than 8 bits


def test_12_bits_in_16_are_read_by_their_range() -> None:
    values = tifffile.imread(CASES / "uint12-grey-in-16.tif")
    assert values.max() == 4080
    np.testing.assert_array_equal(decode_pixels(read("uint12-grey-in-16.tif"))[..., 0], np.rint(values / 4095 * 255))
    color = np.array([[[0, 2048, 4095], [16, 32, 64]]], np.uint16)
    for planar in ("contig", "separate"):
        array = color if planar == "contig" else np.moveaxis(color, 2, 0)
        content = encode_tiff(array, photometric="rgb", planarconfig=planar)
        assert decode_pixels(content).tolist() == [[[0, 128, 255], [1, 2, 4]]]
        content = encode_tiff((array >> 4).astype(np.uint16), photometric="rgb", planarconfig=planar)
        assert decode_pixels(content).tolist() == [[[0, 128, 255], [1, 2, 4]]]


def test_signed_16_bits_are_read_in_either_byte_order() -> None:
    values = tifffile.imread(CASES / "grey-int16-big-endian-deflate.tif")
    expected = np.rint(values / 65535 * 255)
    np.testing.assert_array_equal(decode_pixels(read("grey-int16-big-endian-deflate.tif"))[..., 0], expected)
    np.testing.assert_array_equal(decode_pixels(encode_tiff(values, compression="zlib"))[..., 0], expected)
    assert reason_of(encode_tiff(values - np.int16(1))).startswith("signed levels from -1 to 23999: ")


@pytest.mark.parametrize(
    ("values", "greys"),
    [
        ([0, 128, 255], [0, 128, 255]),
        ([0, 512, 1023], [0, 128, 255]),
        ([0, 2048, 4095], [0, 128, 255]),
        ([0, 4096, 65535], [0, 16, 255]),
    ],
)
def test_integers_in_memory_and_in_files_are_read_by_their_range(values: list[int], greys: list[int]) -> None:
    for dtype in (np.int32, np.uint32, np.uint16):
        if max(values) <= np.iinfo(dtype).max:
            array = np.array([values], dtype)
            assert greys_of(encode_tiff(array)) == greys
            if dtype != np.uint32:
                assert pixels_of(Image.fromarray(array))[0, :, 0].tolist() == greys
    with pytest.raises(ImageError, match="signed levels from -1 to 7"):
        pixels_of(Image.fromarray(np.array([[-1, 7]], np.int32)))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floats_of_other_sizes_are_read_as_those_of_32_bits(dtype: str) -> None:
    assert greys_of(encode_tiff(np.array([[0, 0.5, 1, np.nan]], dtype))) == [0, 128, 255, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encode_tiff(np.zeros((2, 2), np.complex64)), "complex64 TIFF is not supported"),
        (
            encode_tiff(np.zeros((2, 2, 3), np.int16), photometric="rgb"),
            "int16 TIFF of RGB is not supported: signed samples are read as grey only",
        ),
        (
            encode_tiff(np.zeros((2, 2, 3), np.uint16), photometric="cielab"),
            "uint16 TIFF of CIELAB with 3 samples is not supported",
        ),
    ],
)
def test_samples_without_a_meaning_are_named(content: bytes, reason: str) -> None:
    assert reason_of(content) == reason


# TIFFs


def test_tiff_that_pillow_opened_is_read_as_its_file_is() -> None:
    with Image.open(CASES / "uint16-rgb-planar.tif") as image:
        np.testing.assert_array_equal(pixels_of(image), WRITTEN)
        image.load()
        with pytest.raises(ImageError, match="of a kind that Pillow misreads, loaded already"):
            pixels_of(image)
    pages = [np.full((3, 4, 5), level, np.uint16) for level in (0, 30_000)]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in pages:
            writer.write(page, photometric="rgb", planarconfig="separate")
    with Image.open(buffer) as image:
        image.seek(1)
        assert pixels_of(image).tolist() == np.full((4, 5, 3), 30_000 >> 8).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    "tag", [(ORIENTATION, 3, 1, 6, True), (ORIENTATION, 4, 1, 6, True), (700, 1, len(XMP), XMP, True)]
)
def test_tiff_is_made_upright_by_either_reader(dtype: str, tag: tuple[object, ...]) -> None:
    array = np.array([[[0], [1]], [[0], [0]], [[1], [1]]], dtype).repeat(3, axis=2)
    white = 1 if dtype == "uint8" else 255
    for order in "<>":
        content = encode_tiff(array, photometric="rgb", extratags=[tag], byteorder=order)
        assert decode_pixels(content)[..., 0].tolist() == (np.rot90(array[..., 0], -1) * white).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_predictor_of_packbits_which_pillow_leaves_out_is_read(dtype: str) -> None:
    rows, columns = np.mgrid[:8, :16]
    greys = (rows * 16 + columns * 8).astype(np.uint8)
    written = greys.astype(dtype) * (257 if dtype == "uint16" else 1)
    content = encode_tiff(written, compression="packbits", predictor=True)
    np.testing.assert_array_equal(decode_pixels(content)[..., 0], greys)


def test_strip_that_is_missing_or_short_is_refused() -> None:
    content = encode_tiff(np.ones((4, 4, 3), np.float32), photometric="rgb", rowsperstrip=2, compression="zlib")
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        counts, offset = file.pages.first.tags[279], file.pages.first.dataoffsets[1]
    for at in range(counts.valueoffset, counts.valueoffset + counts.valuebytecount):
        missing = content[:at] + b"\0" + content[at + 1 :]
        if missing != content:
            assert reason_of(missing).startswith("truncated or damaged image (")
    assert reason_of(content[:offset] + bytes(len(content) - offset)).startswith("truncated or damaged image (")


def test_tiff_that_needs_imagecodecs_names_the_extra() -> None:
    ways = (None, "zlib", "lzw")
    contents = [encode_tiff(np.zeros((2, 2, 3), np.float32), photometric="rgb", compression=way) for way in ways]
    program = f"""
import sys
class WithoutImagecodecs:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "imagecodecs":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, WithoutImagecodecs())
from captionmill.data.images.decode import decode_pixels
for content in {contents}:
    try:
        print(decode_pixels(content).shape)
    except ValueError as exc:
        print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    reason = "float32 TIFF (LZW) needs the package imagecodecs; run: pip install 'captionmill[tiff]'"
    assert done.stdout.splitlines() == ["(2, 2, 3)", "(2, 2, 3)", reason]


@pytest.mark.parametrize("script", [["tiffs.py", "--every", "127"], ["mutations.py", "--count", "560"]])
def test_small_run_of_a_sweep_finds_nothing_wrong(script: list[str]) -> None:
    name, *options = script
    command = [sys.executable, str(ROOT / "benchmarks" / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("| all | ")) == (0, 1), done.stdout
    assert re.search(r"\| all \| \d{2,} .*\| 0 \|\n", done.stdout)


# BMP and GIF


def test_alpha_of_a_bmp_counts_unless_it_is_zero_throughout() -> None:
    content = read("v4-bitfields-alpha0.bmp")
    start = int.from_bytes(content[10:14], "little")
    pixels = np.frombuffer(content, np.uint8, offset=start).copy()
    pixels[3::4] = 128
    blended = decode_pixels(content[:start] + pixels.tobytes()).astype(int)
    assert np.abs(blended - (WRITTEN * 128 + 255 * 127) / 255).max() <= 1


def test_canvas_around_the_first_frame_of_a_gif_is_white() -> None:
    pixels = decode_pixels(read("frame-inside-canvas-no-transparency.gif"))
    inside = pixels[5:11, 5:11]
    assert pixels.shape == (16, 16, 3)
    assert (inside[..., 1] == 0).all()
    pixels[5:11, 5:11] = 255
    assert (pixels == 255).all()
    with Image.open(CASES / "frame-inside-canvas-no-transparency.gif") as image:
        assert (pixels_of(image)[:5] == 255).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("color", [False, True])
def test_floats_of_which_white_or_black_is_not_known_are_refused(dtype: type, color: bool) -> None:
    for values, reason in (
        ([0, 952], "float levels up to 952: which of them is white is not known; save it with 0 to 1"),
        ([0, 2.5], "float levels up to 2.5: which of them is white is not known; save it with 0 to 1"),
        ([0, 1e6], "float levels up to 1e+06: which of them is white is not known; save it with 0 to 1"),
        ([-1, 1], "float levels from -1 to 1: which of them is black is not known"),
    ):
        pixels: npt.NDArray[Any] = np.array([values], dtype)
        samples = pixels[..., None].repeat(3, axis=2) if color else pixels
        assert reason_of(encode_tiff(samples, photometric="rgb" if color else "minisblack")) == reason


@pytest.mark.parametrize("dtype", [np.uint32, np.int32])
def test_32_bits_of_which_white_is_not_known_are_refused(dtype: type) -> None:
    reason = f"{dtype.__name__} levels up to 70000: which of them is white is not known; save it with 16 bits"
    assert reason_of(encode_tiff(np.array([[0, 70_000]], dtype))) == reason
    white = np.iinfo(dtype).max
    assert greys_of(encode_tiff(np.array([[0, white // 2 + 1, white]], dtype))) == [0, 128, 255]


DEEP_J2K = bytes.fromhex(
    "ff4fff5100290000000000020000000100000000000000000000000200000001000000000000000000010b0101ff52000c00"
    "000001000004040001ff5c00044060ff90000a0000000000140001ff93dfe00c05e903ffd9"
)  # OpenJPEG: 2 x 1 pixels of 12 bits, 0 and 255


def test_white_that_a_file_states_counts_however_dark_it_is() -> None:
    for maxval, level, grey in ((4095, 200, 12), (65535, 4000, 16), (1000, 1000, 255)):
        assert greys_of(b"P5 2 1 %d\n" % maxval + struct.pack(">2H", 0, level)) == [0, grey]
    assert greys_of(DEEP_J2K) == [0, 16]


@pytest.mark.parametrize("bits", [1, 4, 9, 12, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("codec", ["j2k", "jp2"])
def test_jpeg_2000_of_any_depth_has_both_black_and_white(bits: int, count: int, codec: str) -> None:
    white = 2**bits - 1
    samples = np.zeros((8, 8, count), np.uint8 if bits <= 8 else np.uint16)
    samples[:, 4:] = white
    if count in (2, 4):
        samples[..., -1] = white  # opaque
    content = encode_jpeg_2000(samples, bits, codecformat=codec)
    assert decode_pixels(content)[0, :, 0].tolist() == [0] * 4 + [255] * 4


def test_jpeg_2000_whose_levels_are_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    color = encode_jpeg_2000(np.zeros((8, 8, 3), np.uint16), 12)
    depths = color.index(b"\xff\x4f\xff\x51") + 42
    for depth in (11 | 0x80, 6 | 0x80):
        assert reason_of(color[:depths] + bytes([depth]) + color[depths + 1 :]).startswith("JPEG 2000 with signed")
    assert reason_of(color.replace(b"colr\1\0\0\0\0\0\x10", b"colr\1\0\0\0\0\0\x12")) == (
        "JPEG 2000 of YCbCr with 12 bits is not supported"
    )
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert reason_of(color) == "colours of 12 bits in JPEG 2000 need imagecodecs; run: pip install 'captionmill[tiff]'"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equal_colors_in_the_palette_of_a_jpeg_2000_are_two(bits: int) -> None:
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
    colors = np.array([[255, 0, 0], [255, 0, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
    content = encode_jpeg_2000(numbers[..., None], bits, codecformat="jp2")
    start = content.index(b"jp2h") - 4
    end = start + int.from_bytes(content[start : start + 4], "big")
    palette = struct.pack(">I4sHB3B", 14 + colors.size, b"pclr", 4, 3, 7, 7, 7) + colors.tobytes()
    palette += struct.pack(">I4s", 20, b"cmap") + b"".join(struct.pack(">HBB", 0, 1, place) for place in range(3))
    header = content[start + 4 : end].replace(b"colr\1\0\0\0\0\0\x11", b"colr\1\0\0\0\0\0\x10") + palette
    content = content[:start] + struct.pack(">I", 4 + len(header)) + header + content[end:]
    np.testing.assert_array_equal(decode_pixels(content), colors[numbers])


# TIFF: which of several pages is the image


def write_pages(*pages: tuple[int, int, dict[str, Any]], **options: Any) -> bytes:
    """A TIFF of one-coloured pages, each of a width and a level, with what tifffile takes."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, **options) as file:
        for width, level, page_options in pages:
            dtype = page_options.pop("dtype", np.uint8)
            file.write(np.full((4, width, 3), level, dtype), photometric="rgb", metadata=None, **page_options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("is_big", [False, True])
def test_thumbnails_before_the_image_of_a_tiff_are_passed_over(dtype: type, is_big: bool) -> None:
    def shape_of(*pages: tuple[int, int, dict[str, Any]]) -> tuple[int, ...]:
        return decode_pixels(write_pages(*pages, bigtiff=is_big)).shape

    thumbnail, image, alone = {"subfiletype": 1, "dtype": dtype}, {"dtype": dtype}, {"subfiletype": 1, "dtype": dtype}
    assert shape_of((2, 1, thumbnail), (9, 1, image)) == (4, 9, 3)
    assert shape_of((9, 1, {"dtype": dtype}), (2, 1, {"subfiletype": 1, "dtype": dtype})) == (4, 9, 3)
    assert shape_of((2, 1, alone)) == (4, 2, 3)
    with pytest.raises(ImageError, match=r"^a TIFF whose pages are thumbnails of images in directories below them"):
        shape_of((2, 1, {"subfiletype": 1, "dtype": dtype, "subifds": 1}), (9, 1, {"dtype": dtype}))


# Orientation

RAW_PROFILE = "\nexif\n      {count}\n{digits}\n"


def orient(order: str, kind: int) -> bytes:
    """EXIF with orientation 6 as a value of the TIFF type `kind`."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    value = struct.pack(order + {1: "B", 3: "H", 4: "I"}[kind], 6).ljust(4, b"\0")
    return mark + struct.pack(order + "IHHHI", 8, 1, ORIENTATION, kind, 1) + value + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("prefixes", [1, 2])
def test_orientation_of_any_integer_type_is_read(order: str, kind: int, prefixes: int) -> None:
    exif = b"Exif\0\0" * prefixes + orient(order, kind)
    for image_format in ("JPEG", "PNG", "WEBP"):
        assert decode_pixels(encode(SCENE, image_format, exif=exif)).shape == (64, 48, 3)


def test_orientation_in_a_raw_profile_of_a_png_is_read() -> None:
    png = encode(SCENE, "PNG")
    exif = b"Exif\0\0" + orient(">", 3)
    for name in (b"exif", b"APP1"):
        profile = b"\n%s\n      %d\n%s\n" % (name, len(exif), exif.hex().encode())
        for kind, content in ((b"tEXt", profile), (b"zTXt", b"\0" + zlib.compress(profile))):
            named = add_chunk(png, kind, b"Raw profile type " + name + b"\0" + content)
            assert decode_pixels(named).shape == (64, 48, 3)
            huge = add_chunk(named, b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000)))
            assert decode_pixels(huge).shape == (64, 48, 3)


def test_orientation_in_xmp_only_is_read_and_exif_goes_before_it() -> None:
    assert decode_pixels(encode(SCENE, "JPEG", xmp=XMP)).shape == (64, 48, 3)
    assert decode_pixels(encode(SCENE, "WEBP", xmp=XMP)).shape == (64, 48, 3)
    element = XMP.replace(b' tiff:Orientation="6"/>', b"><tiff:Orientation>6</tiff:Orientation></rdf:Description>")
    png = encode(SCENE, "PNG")
    assert decode_pixels(add_chunk(png, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + element)).shape == (64, 48, 3)
    upright = b"Exif\0\0" + orient("<", 3).replace(b"\x06\0\0\0", b"\x01\0\0\0")
    assert decode_pixels(encode(SCENE, "JPEG", xmp=XMP, exif=upright)).shape == (48, 64, 3)


# PNG: what is not needed for the pixels is not needed at all


def test_bomb_in_the_text_or_profile_of_a_png_costs_little_memory() -> None:
    bomb = zlib.compress(bytes(30_000_000))
    png = encode(SCENE, "PNG")
    for kind, name in ((b"zTXt", b"Comment\0\0"), (b"iCCP", b"icc\0\0"), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0")):
        content = add_chunk(png, kind, name + bomb)
        tracemalloc.start()
        np.testing.assert_array_equal(decode_pixels(content), np.asarray(SCENE))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 15_000_000


def test_png_is_refused_if_a_checksum_of_its_pixels_is_wrong() -> None:
    png = bytearray(encode(SCENE, "PNG"))
    start = png.index(b"IDAT")
    size = int.from_bytes(png[start - 4 : start])
    for at in (start + 4 + size // 2, start + 4 + size):
        damaged = png.copy()
        damaged[at] ^= 1
        assert reason_of(bytes(damaged)).startswith("truncated or damaged image (")
    zeroed = png[: start + size // 2] + bytes(len(png) - start - size // 2)
    assert reason_of(bytes(zeroed)) == "truncated or damaged image (wrong checksum of the pixels)"
    np.testing.assert_array_equal(decode_pixels(bytes(png[: start + 4 + size])), np.asarray(SCENE))


def test_png_with_a_damaged_chunk_that_decides_on_the_pixels_is_refused() -> None:
    for kind, content in (
        (b"tRNS", bytes(6)),
        (b"eXIf", orient("<", 3)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    ):
        png = bytearray(add_chunk(encode(SCENE, "PNG"), kind, content))
        png[33 + 8 + len(content)] ^= 1
        assert "checksum" in reason_of(bytes(png))


# JPEG: which damage is accepted

LARGE = Image.fromarray(np.random.RandomState(1).randint(0, 256, (64, 48, 3), np.uint8)).resize((480, 640))
PLAIN = encode(LARGE, "JPEG", quality=90)
PROGRESSIVE = encode(LARGE, "JPEG", quality=90, progressive=True)
MARKED = encode(LARGE, "JPEG", quality=90, restart_marker_rows=1)  # 40 rows
RESTART = re.compile(rb"\xff[\xd0-\xd7]")


def damage_rows(content: bytes, *rows: int) -> bytes:
    """A JPEG with restart markers that lacks 300 bytes in each of the `rows`."""
    starts = [found.end() for found in RESTART.finditer(content)]
    for row in sorted(rows, reverse=True):
        at = starts[row] + 30
        content = content[:at] + content[at + 300 :]
    return content


def test_jpeg_with_all_pixels_and_no_end_is_accepted() -> None:
    expected = decode_pixels(read("no-eoi-trailing-nul.jpg").rstrip(b"\0") + b"\xff\xd9")
    np.testing.assert_array_equal(decode_pixels(read("no-eoi-trailing-nul.jpg")), expected)
    for content in (PLAIN, PROGRESSIVE, MARKED, *(encode(SCENE.convert(mode), "JPEG") for mode in ("CMYK", "L"))):
        whole = decode_pixels(content)
        for ending in (b"", bytes(5000), b"\xff" * 16):
            np.testing.assert_array_equal(decode_pixels(content[:-2] + ending), whole)
        np.testing.assert_array_equal(decode_pixels(content[:-2] + bytes(512) + b"\xff\xd9"), whole)


def test_jpeg_that_is_cut_and_filled_up_with_zeros_is_refused() -> None:
    for content in (PLAIN, PROGRESSIVE, MARKED):
        for kept in (len(content) // 2, len(content) - 4500):  # the last two rows of 40 are cut
            padded = content[:kept] + bytes(len(content) - kept)
            assert reason_of(padded).startswith("truncated or damaged image (")
            assert reason_of(padded + b"\xff\xd9").startswith("truncated or damaged image (")


def test_progressive_jpeg_that_ends_between_two_scans_is_refused() -> None:
    last = PROGRESSIVE.rindex(b"\xff\xda")
    assert reason_of(PROGRESSIVE[:last]).startswith("truncated or damaged image (")


def test_damage_between_restart_markers_is_accepted_up_to_five_per_cent() -> None:
    assert MOST_DAMAGED == 0.05
    whole = decode_pixels(MARKED)
    for rows in ((7,), (7, 21)):
        apart = (decode_pixels(damage_rows(MARKED, *rows)) != whole).any(axis=(1, 2))
        assert 0 < apart.sum() <= 18 * len(rows)  # of 640 rows of pixels
    assert reason_of(damage_rows(MARKED, 7, 21, 30)).startswith("truncated or damaged image (")
    assert decode_pixels(read("one-row-of-forty-short-by-6-bytes.jpg")).shape == (640, 960, 3)


def test_damage_that_may_spread_is_refused() -> None:
    assert reason_of(read("one-restart-marker-lost.jpg")).startswith("truncated or damaged image (")
    marker = list(RESTART.finditer(MARKED))[7].start()
    middle = len(PLAIN) // 2
    for content in (
        MARKED[:marker] + MARKED[marker + 2 :],
        MARKED[:marker] + b"\xff\xd1" + MARKED[marker + 2 :],
        PLAIN[:middle] + PLAIN[middle + 600 :],
        PLAIN[:middle] + PLAIN[middle : middle + 40] + PLAIN[middle:],
    ):
        assert reason_of(content).startswith("truncated or damaged image (")


def test_bytes_between_the_segments_of_a_jpeg_do_not_matter_and_hide_no_damage() -> None:
    start = PLAIN.index(b"\xff\xc4")
    filled = PLAIN[:start] + b"not a segment" + PLAIN[start:]
    np.testing.assert_array_equal(decode_pixels(filled), decode_pixels(PLAIN))
    with pytest.raises(ValueError, match="13 extraneous bytes before marker 0xc4"):
        simplejpeg.decode_jpeg(filled)
    middle = len(filled) // 2
    assert reason_of(filled[:middle] + filled[middle + 600 :]).startswith("truncated or damaged image (")


# Tars


def test_a_long_run_of_one_byte_in_a_jpeg_takes_no_more_time_than_its_length() -> None:
    image = Image.linear_gradient("L").convert("RGB")
    whole = encode(image, "JPEG")
    scan, run, started = whole.index(b"\xff\xda"), b"\xff" * 300_000 + b"\0", time.process_time()
    assert (decode_pixels(whole[:scan] + run + whole[scan:]) == decode_pixels(whole)).all()
    with pytest.raises(ImageError, match="premature end"):
        decode_pixels(whole[: scan + 20] + run + whole[scan + 20 :])
    assert time.process_time() - started < 5


def test_tar_without_its_end_mark_is_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert [member.name for member in list_members(CASES / "no-end-mark.tar")] == ["a.jpg"]
    assert caplog.messages == [
        f"{CASES / 'no-end-mark.tar'}: no end mark; if it was cut between two members, later ones are missing"
    ]


def test_tars_in_one_file_are_read_one_after_the_other(tmp_path: Path) -> None:
    path = CASES / "concatenated.tar"
    members = list(list_members(path))
    assert [member.name for member in members] == ["a.jpg", "b.jpg"]
    for member in members:
        content = path.read_bytes()[member.offset : member.offset + member.size]
        assert decode_pixels(content).shape == (64, 96, 3)
    (tmp_path / "three.tar").write_bytes(read("no-end-mark.tar") + path.read_bytes() + bytes(20_000) + b"no tar")
    assert [member.name for member in list_members(tmp_path / "three.tar")] == ["a.jpg", "b.jpg"]
    (tmp_path / "cut.tar").write_bytes(path.read_bytes()[:12_000])
    with pytest.raises(ImageError, match="not a readable tar"):
        list_members(tmp_path / "cut.tar")


def test_sparse_members_of_a_tar_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(CASES / "sparse.tar") as archive:
        assert archive.getnames() == ["sparse.jpg", "a.jpg"]
    with caplog.at_level(logging.WARNING):
        assert [member.name for member in list_members(CASES / "sparse.tar")] == ["a.jpg"]
    assert caplog.messages == [
        f"{CASES / 'sparse.tar'}: 1 sparse members left out, such as 'sparse.jpg'; pack them as ordinary files"
    ]


@pytest.mark.parametrize(
    "header", [b"P5\n4 3\n255\r\n", b"P5\n4 3\n255\n# a camera\n", b"P5\n2 3\n1000\r\n", b"P4\n32 3\r\n"]
)
def test_a_netpbm_header_that_ends_with_more_than_one_whitespace_is_refused(header: bytes) -> None:
    with pytest.raises(ImageError, match="its header ends with more than one whitespace"):
        decode_pixels(header + bytes(range(12)))


@pytest.mark.parametrize("first", [10, ord("#")])
def test_a_netpbm_image_may_begin_with_what_looks_like_the_end_of_its_header(first: int) -> None:
    data = b"P5\n4 3\n255\r" + bytes([first, *range(11)])
    assert decode_pixels(data)[..., 0].ravel().tolist() == [first, *range(11)]
