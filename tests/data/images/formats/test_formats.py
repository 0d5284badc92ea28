"""Images in every format have a row: further ones are read where a library reads them, and others are named."""

import contextlib
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import TESTS
from PIL import Image

from captionmill.data.errors import ImageError
from captionmill.data.images.decode import Pixels, decode_pixels, is_image_header
from captionmill.data.images.find import find_images
from captionmill.data.images.formats.kinds import ALL_IMAGE_SUFFIXES, IMAGE_SUFFIXES, has_read_suffix

LEVELS = np.random.default_rng(0).integers(0, 255, (4, 6, 8), dtype=np.uint8)
"""Four planes of an image, [4, H, W]."""
RGB = np.moveaxis(LEVELS[:3], 0, 2)
CORNER = np.full((48, 64, 3), 255, np.uint8)
CORNER[:24, :32] = (200, 30, 30)
"""Red at the top left."""


def encode(pixels: Pixels, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def encode_heic(pixels: Pixels, **options: object) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=95, **options)
    return buffer.getvalue()


def reason_of(data: bytes, name: str = "") -> str:
    with pytest.raises(ImageError) as caught:
        decode_pixels(data, name=name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("image_format", ["PPM", "JPEG2000"])
def test_lossless_formats_give_their_exact_pixels(image_format: str) -> None:
    data = encode(RGB, image_format)
    assert is_image_header(data)
    np.testing.assert_array_equal(decode_pixels(data), RGB)


def test_a_heic_that_is_called_jpg_is_read() -> None:
    pytest.importorskip("pillow_heif", reason="needs the extra heif")
    data = (TESTS / "cases/heic-called-jpg.jpg").read_bytes()
    assert is_image_header(data)
    pixels = decode_pixels(data, name="heic-called-jpg.jpg")
    assert pixels.shape == (64, 96, 3)
    np.testing.assert_allclose(pixels.mean(axis=(0, 1)), (170.9, 112.7, 164.6), atol=1)


def test_a_heic_without_the_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_read_suffix("a.jpg")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = (TESTS / "cases/heic-called-jpg.jpg").read_bytes()
    assert reason_of(data, "a.jpg") == "HEIC: pip install 'captionmill[heif]'"
    assert (has_read_suffix("a.HEIC"), has_read_suffix("a.cr2"), has_read_suffix("a.jpg")) == (False, False, True)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_and_avif_are_turned_upright_once(orientation: int) -> None:
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.rot90(CORNER, turns)
    for data in (encode_heic(CORNER, exif=exif.tobytes()), encode(CORNER, "AVIF", quality=95, exif=exif.tobytes())):
        pixels = decode_pixels(data)
        assert pixels.shape == upright.shape
        assert np.abs(pixels.astype(int) - upright).mean() < 2


def test_heic_avif_and_jpeg_2000_that_are_cut_or_filled_with_zeros_are_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    files = {
        "HEIC": encode_heic(noise),
        "AVIF": encode(noise, "AVIF"),
        "JPEG2000": encode(noise, "JPEG2000", quality_mode="rates", quality_layers=[4]),
    }
    metadata = struct.pack(">I4s", 9008, b"uuid") + b"metadata" * 1125
    assert decode_pixels(files["JPEG2000"] + metadata).shape == noise.shape
    for name, data in files.items():
        assert decode_pixels(data).shape == noise.shape, name
        for part in (3, 2):
            kept = data[: len(data) // part]
            assert reason_of(kept).startswith("truncated or damaged image ("), name
            assert reason_of(kept + bytes(len(data) - len(kept))).startswith("truncated or damaged image ("), name


def test_damaged_heic_is_an_image_or_an_image_error() -> None:
    data, random = encode_heic(RGB), np.random.default_rng(1)
    for _ in range(100):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 3):
            damaged[place] = random.integers(0, 256)
        with contextlib.suppress(ImageError):
            assert decode_pixels(bytes(damaged)).dtype == np.uint8


# Photoshop


def make_psd(
    planes: Pixels, *, mode: int = 3, depth: int = 8, version: int = 1, layers: int = 0, merged: int = 1
) -> bytes:
    """A file as in Adobe's specification: header, colour mode, resources with the version info, layers, pixels."""
    count, height, width = planes.shape
    info = b"8BIM" + struct.pack(">H2xI", 1057, 6) + struct.pack(">IBB", 1, merged, 0)
    layer_info = struct.pack(">Ih", 2, layers) if layers else b""
    header = b"8BPS" + struct.pack(">H6xHIIHH", version, count, height, width, depth, mode)
    sections = [b"", info, layer_info]
    pixels = planes.astype(f">u{max(1, depth // 8)}").tobytes()
    return header + b"".join(struct.pack(">I", len(part)) + part for part in sections) + b"\0\0" + pixels


def test_a_psd_is_its_merged_image_and_a_saved_selection_is_no_transparency() -> None:
    np.testing.assert_array_equal(decode_pixels(make_psd(LEVELS[:3])), RGB)
    np.testing.assert_array_equal(decode_pixels(make_psd(LEVELS)), RGB)
    np.testing.assert_array_equal(decode_pixels(make_psd(LEVELS, layers=2)), RGB)
    clear = LEVELS.copy()
    clear[3] = 0
    assert (decode_pixels(make_psd(clear, layers=-2)) == 255).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"depth": 16}, "PSD with 16 bits per channel is not supported; save it with 8"),
        ({"mode": 7}, "PSD in multichannel mode is not supported; save it as RGB"),
        ({"merged": 0}, "PSD without a merged image; save it with maximum compatibility"),
        ({"version": 2}, "PSB is not supported; convert it to JPEG or PNG"),
    ],
)
def test_a_psd_whose_pixels_cannot_be_known_says_why(changes: dict[str, int], reason: str) -> None:
    assert reason_of(make_psd(LEVELS[:3], **changes)) == reason


# Formats of cameras


def make_tiff(order: str, *, dng: bool = False, photometrics_below: tuple[int, ...] = ()) -> bytes:
    """A TIFF of 4 x 4 grey pixels, as the thumbnail in a camera's file, with directories below it."""
    tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 16}
    if dng:
        tags[0xC612] = 0x01040000
    end = 8 + 2 + 12 * (len(tags) + bool(photometrics_below)) + 4
    below = [struct.pack(f"{order}HHHIIxxxx", 1, 262, 4, 1, number) for number in photometrics_below]
    starts = [end + 4 * len(below) + sum(map(len, below[:place])) for place in range(len(below))]
    entries = {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()}
    if below:
        entries[330] = struct.pack(f"{order}HHII", 330, 4, len(below), starts[0] if len(below) == 1 else end)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return start + directory + struct.pack(f"{order}{len(starts)}I", *starts) + b"".join(below)


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_thumbnail_in_a_cameras_tiff_is_not_its_image(order: str) -> None:
    unnamed = "RAW (a camera's TIFF) is not supported; convert it to JPEG or PNG"
    assert decode_pixels(make_tiff(order)).shape == (4, 4, 3)
    assert decode_pixels(make_tiff(order, photometrics_below=(1, 6))).shape == (4, 4, 3)
    assert reason_of(make_tiff(order, photometrics_below=(32803,)), "a.tif") == unnamed
    assert reason_of(make_tiff(order, photometrics_below=(6, 34892))) == unnamed
    assert reason_of(make_tiff(order, dng=True)) == unnamed
    assert reason_of(make_tiff(order), "a/b.NEF") == "RAW (NEF) is not supported; convert it to JPEG or PNG"


@pytest.mark.parametrize(
    ("content", "name", "format_name"),
    [
        (b"II*\0\x10\0\0\0CR\2\0", "a.jpg", "RAW (CR2)"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a", "RAW (CR3)"),
        (b"FUJIFILMCCD-RAW 0201", "", "RAW (RAF)"),
        (b"\xff\x0a" + bytes(30), "a.png", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "", "JPEG XL"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "a.jpg", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "", "EPS"),
        (b"%PDF-1.7", "scan.jpg", "PDF"),
        (bytes(128) + b"DICM", "", "DICOM"),
        (bytes(40), "a.TGA", "TGA"),
        (b"anything", "a/b.arw", "RAW (ARW)"),
    ],
)
def test_a_format_that_is_not_read_is_named(content: bytes, name: str, format_name: str) -> None:
    assert reason_of(content, name) == f"{format_name} is not supported; convert it to JPEG or PNG"


@pytest.mark.parametrize("name", ["a.dng", "a.svg", "a.heic", "a.psd"])
def test_a_jpeg_is_read_whatever_its_name_says(name: str) -> None:
    assert decode_pixels(encode(CORNER, "JPEG"), name=name).shape == CORNER.shape


def test_every_suffix_that_is_read_is_that_of_an_image() -> None:
    assert ALL_IMAGE_SUFFIXES.issuperset(IMAGE_SUFFIXES)
    assert {".cr2", ".nef", ".arw", ".dng", ".heic", ".avif", ".jxl", ".psd", ".svg"} < ALL_IMAGE_SUFFIXES
    assert not ALL_IMAGE_SUFFIXES & {".txt", ".json", ".csv", ".mp4", ".tar", ".xmp", ".npy"}


def test_every_picture_beside_jpegs_has_a_row(tmp_path: Path) -> None:
    cameras = "raw rw2 orf arw cr2 cr3 nef nrw dng raf pef srw x3f 3fr iiq kdc mrw erf dcr mos arq ari"
    web = "jxl svg heic heif avif jp2 j2k webp ico cur jfif jpe jxr wdp hif insp mpo apng qoi avci"
    others = "psd psb xcf kra ai eps exr hdr dds tga pcx ppm emf wmf fits dcm pict pcd ora pdn clip afphoto cdr ktx2"
    suffixes = f"{cameras} {web} {others}".split()
    for suffix in suffixes:
        (tmp_path / f"a.{suffix.upper()}").write_bytes(b"anything")
    assert {image.key for image in find_images(tmp_path)} == {f"a.{suffix.upper()}" for suffix in suffixes}
    assert reason_of(b"anything", "a.raw") == "RAW is not supported; convert it to JPEG or PNG"
    assert reason_of(b"II*\0" + bytes(40), "a.RAW") == "RAW is not supported; convert it to JPEG or PNG"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "a Git LFS pointer instead of the image; run git lfs pull",
        ),
        (b"../.git/annex/objects/K", "a git-annex pointer instead of the image; run git annex get"),
        (b"\n<!-- x --><!DOCTYPE html>", "an HTML page, not an image; fetch it again"),
        (b"<?xml version='1.0'?>\n<HTML lang='en'>", "an HTML page, not an image; fetch it again"),
        (b"<center><h1>403 Forbidden", "an HTML page, not an image; fetch it again"),
        (b'{\n  "error": "not found"}', "JSON, not an image; fetch it again"),
        (b'\xef\xbb\xbf{"error": "not found"}', "JSON, not an image; fetch it again"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isom", "a video, not an image"),
        (b"\x1aE\xdf\xa3\x01", "a video, not an image"),
        ((b"G\x40\0\x10" + bytes(184)) * 2, "a video, not an image"),
        (bytes(4) + (b"G\x40\0\x10" + bytes(188)) * 2, "a video, not an image"),
        (b"\0\x05\x16\x07\0\2", "a Mac's AppleDouble file, which holds no image"),
    ],
)
def test_what_stands_in_the_place_of_an_image_is_named_whatever_its_suffix(content: bytes, reason: str) -> None:
    assert {reason_of(content, name) for name in ("a.jpg", "a.cr2", "a.svg", "a")} == {reason}


def test_what_has_no_image_is_named_unless_its_suffix_explains_it() -> None:
    archive = "an archive, not an image; unpack it"
    for content, reason in (
        (b"PK\x03\x04", archive),
        (b"\x1f\x8b\x08", archive),
        (b"<Error><Code>AccessDenied", "XML, not an image; fetch it again"),
        (bytes(2000), "begins with zeros only; copy it again"),
    ):
        assert reason_of(content, "a.png") == reason
        assert reason_of(content, "a.kra") == "Krita is not supported; convert it to JPEG or PNG"


def test_a_text_is_no_image(tmp_path: Path) -> None:
    for text in (b"P1 of the plan", b"P5", b"a,b\n", b"ftyp", b"<html><svg>"):
        assert not is_image_header(text)
