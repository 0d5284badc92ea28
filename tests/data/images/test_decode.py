import io
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from captionmill.data.errors import ImageError, InputError
from captionmill.data.features.spec import Preprocess
from captionmill.data.images.decode import decode_image, decode_pixels
from captionmill.data.images.find import find_images
from captionmill.data.images.formats.jpeg import REDUCING_GAP
from captionmill.data.images.formats.limits import PIXEL_LIMIT
from captionmill.data.images.keys import image_key
from captionmill.data.images.read import load_image, read_image
from captionmill.stages.encoding.encoder import Encoder, build_encoder
from captionmill.stages.settings import ExtractConfig

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
ORIENTATION = 0x0112
needs_permissions = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def encode_png(size: tuple[int, int], depth: int, color_type: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row, for what Pillow reads and cannot write."""
    header = struct.pack(">IIBBBBB", *size, depth, color_type, 0, 0, 0)
    body = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in body
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def encode_tiff(size: tuple[int, int], bits: int, photometric: int, pixels: bytes) -> bytes:
    """An uncompressed grey TIFF, for what Pillow reads and cannot write."""
    tags = [(256, size[0]), (257, size[1]), (258, bits), (259, 1), (262, photometric)]
    tags += [(273, 8), (277, 1), (278, size[1]), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


def pixels_of(path: Path) -> list[tuple[int, int, int]]:
    """The pixels of an image, row by row."""
    image = load_image(path)
    assert image.mode == "RGB"
    return [(int(red), int(green), int(blue)) for red, green, blue in np.asarray(image).reshape(-1, 3)]


def greys_of(path: Path) -> list[int]:
    pixels = pixels_of(path)
    assert all(red == green == blue for red, green, blue in pixels)
    return [red for red, _, _ in pixels]


def reason_of(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path)
    reason = str(caught.value)
    assert "\n" not in reason
    assert str(path) not in reason
    return reason


def paint(*colors: tuple[int, int, int], width: int | None = None) -> Image.Image:
    array = np.array(colors, dtype=np.uint8)
    return Image.fromarray(array.reshape(-1, width or len(colors), 3))


NOISE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (48, 64, 3), dtype=np.uint8))
JPEG = encode(paint(RED, RED), "JPEG")


# Finding


def test_folder_is_searched_at_every_depth_and_sorted_by_key(tmp_path: Path) -> None:
    for name in ("b/deep/x.PNG", "b.jpg", "B.JPEG", "a/z.webp", "a/notes.txt", "a/x.jpg.1"):
        write(tmp_path / name, b"")
    found = find_images(tmp_path)
    assert [image.key for image in found] == ["B.JPEG", "a/z.webp", "b.jpg", "b/deep/x.PNG"]
    assert [image.path for image in found] == [tmp_path / image.key for image in found]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"])
def test_every_suffix_counts_in_either_case(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a.{suffix}", b"")
    write(tmp_path / f"b.{suffix.upper()}", b"")
    assert [image.key for image in find_images(tmp_path)] == [f"a.{suffix}", f"b.{suffix.upper()}"]


def test_files_without_suffix_count_when_their_first_bytes_are_an_image(tmp_path: Path) -> None:
    for image_format in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        write(tmp_path / image_format.lower(), encode(NOISE, image_format))
    write(tmp_path / "README", b"BMP files are not here")
    write(tmp_path / "empty", b"")
    assert [image.key for image in find_images(tmp_path)] == ["bmp", "gif", "jpeg", "png", "tiff", "webp"]


def test_hidden_files_and_folders_are_left_out_but_a_hidden_root_is_searched(tmp_path: Path) -> None:
    for name in (".root/._a.jpg", ".root/.cache/b.jpg", ".root/c.jpg"):
        write(tmp_path / name, b"")
    assert [image.key for image in find_images(tmp_path / ".root")] == ["c.jpg"]


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/a.jpg", b"")
    write(tmp_path / "root/sub/b.jpg", b"")
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/sub/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/sub/self").symlink_to("self")
    assert [image.key for image in find_images(tmp_path / "root")] == ["link/a.jpg", "sub/b.jpg"]


def test_link_to_nowhere_is_kept_so_that_it_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    (tmp_path / "b.jpg").symlink_to("b.jpg")
    images = find_images(tmp_path)
    assert [image.key for image in images] == ["a.jpg", "b.jpg"]
    assert [reason_of(Path(image.path)) for image in images] == [
        "no such file or directory",
        "too many levels of symbolic links",
    ]


def test_name_that_is_not_utf8_gets_a_key_that_can_be_written(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    try:
        Path(os.fsdecode(path)).write_bytes(JPEG)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes only UTF-8 names")
    (image,) = find_images(tmp_path)
    assert image.key == r"caf\udce9.jpg"
    assert load_image(Path(image.path)).size == (2, 1)


@needs_permissions
def test_folder_that_cannot_be_listed_stands_among_the_images_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", JPEG)
    write(tmp_path / "b/closed.tar/c.jpg", JPEG)
    closed = tmp_path / "b/closed.tar"
    closed.chmod(0)
    try:
        picture, folder = find_images(tmp_path)
        with pytest.raises(InputError, match=r"closed.tar: cannot list this folder \(Permission denied\)"):
            find_images(closed)
    finally:
        closed.chmod(0o700)
    assert read_image(picture)[0] == JPEG
    assert folder.key == "b/closed.tar"
    with pytest.raises(ImageError, match=r"^a folder that cannot be listed \(permission denied\)$"):
        read_image(folder)


def test_list_resolves_against_its_own_folder_and_normalises_keys(tmp_path: Path) -> None:
    path = write(
        tmp_path / "lists/all.txt",
        b"\xef\xbb\xbf./b//c.jpg\r\n\r\n  \r\nb\\c.jpg\r\n../up.jpg\r\n/data/x.jpg\r\ngone.jpg\r\ncaf\xc3\xa9.jpg",
    )
    found = {image.key: Path(image.path).resolve() for image in find_images(path)}
    assert list(found) == ["../up.jpg", "/data/x.jpg", "b/c.jpg", "café.jpg", "gone.jpg"]
    assert found["../up.jpg"] == tmp_path / "up.jpg"
    assert found["/data/x.jpg"] == Path("/data/x.jpg")
    assert found["b/c.jpg"] == tmp_path / "lists/b/c.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            JPEG,
            "not UTF-8 text; expected a folder of images, a .tar, or a UTF-8 text file with one image path per line",
        ),
        (
            b"a\0.jpg\n",
            "not text; expected a folder of images, a .tar, or a UTF-8 text file with one image path per line",
        ),
        (b"\n \n", "the list is empty; write one image path per line"),
    ],
)
def test_file_that_is_no_list_says_what_is_expected(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "images.txt", content)
    with pytest.raises(InputError) as caught:
        find_images(path)
    assert str(caught.value) == f"{path}: {message}"


def test_one_image_is_told_from_a_list_that_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "photo.jpg", JPEG)
    with pytest.raises(InputError, match=r"photo\.jpg: one image; expected a folder of images, a \.tar, or a UTF-8"):
        find_images(path)


def test_missing_path_and_empty_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: No such file or directory; expected a folder of images, a .tar, or"):
        find_images(tmp_path / "gone")
    with pytest.raises(InputError, match=r": no image in this folder or below it; looked for \.jpg \.jpeg"):
        find_images(tmp_path)


def test_image_key_is_a_posix_path() -> None:
    assert [image_key(name) for name in ("./a//b.jpg", "a\\b.jpg", "a/../b.jpg", "")] == [
        "a/b.jpg",
        "a/b.jpg",
        "b.jpg",
        "",
    ]


# Decoding: what an image looks like


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_formats_give_their_exact_pixels_whatever_the_suffix(tmp_path: Path, image_format: str) -> None:
    path = write(tmp_path / "a.jpg", encode(paint(RED, GREEN, BLUE, WHITE, width=2), image_format))
    assert pixels_of(path) == [RED, GREEN, BLUE, WHITE]
    assert load_image(path).size == (2, 2)


def test_jpeg_and_webp_give_their_pixels(tmp_path: Path) -> None:
    assert pixels_of(write(tmp_path / "a", JPEG)) == [(254, 0, 0)] * 2
    assert pixels_of(write(tmp_path / "b", encode(paint(RED, BLUE), "WEBP", lossless=True))) == [RED, BLUE]


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_several_is_taken(tmp_path: Path, image_format: str) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    content = encode(paint(RED, RED), image_format, save_all=True, append_images=[paint(BLUE, BLUE)], **options)
    assert pixels_of(write(tmp_path / "a", content)) == [RED, RED]


def test_first_picture_of_an_mpo_is_taken(tmp_path: Path) -> None:
    content = encode(paint(RED, RED), "MPO", save_all=True, append_images=[paint(BLUE, BLUE)])
    assert pixels_of(write(tmp_path / "a.jpg", content)) == [(254, 0, 0)] * 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK"])
def test_modes_become_the_same_rgb(tmp_path: Path, mode: str) -> None:
    path = write(tmp_path / "a.tif", encode(paint(BLACK, WHITE).convert(mode), "TIFF"))
    with Image.open(path) as image:
        assert image.mode == mode
    assert pixels_of(path) == [BLACK, WHITE]


def test_palette_keeps_its_colors(tmp_path: Path) -> None:
    assert pixels_of(write(tmp_path / "a", encode(paint(RED, BLUE).quantize(2), "PNG"))) == [RED, BLUE]


def test_ycbcr_and_lab_become_rgb_within_rounding(tmp_path: Path) -> None:
    color = Image.new("RGB", (4, 4), (200, 100, 50))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(color, *profiles, outputMode="LAB")
    assert lab is not None
    assert pixels_of(write(tmp_path / "a", encode(color.convert("YCbCr"), "TIFF"))) == [(199, 99, 49)] * 16
    assert pixels_of(write(tmp_path / "b", encode(lab, "TIFF"))) == [(199, 100, 50)] * 16


def test_cmyk_jpeg_is_read_by_adobe_convention_with_and_without_its_marker(tmp_path: Path) -> None:
    content = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    marker = content.index(b"\xff\xee")
    marker_end = marker + 2 + int.from_bytes(content[marker + 2 : marker + 4], "big")
    assert content[marker + 4 : marker + 9] == b"Adobe"
    assert pixels_of(write(tmp_path / "a", content))[0] == RED
    assert pixels_of(write(tmp_path / "b", content[:marker] + content[marker_end:]))[0] == RED


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, dtype: str) -> None:
    grey = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=dtype))
    assert greys_of(write(tmp_path / "a", encode(grey, "TIFF"))) == [0, 1, 128, 255]


def test_16_bit_png_is_scaled_not_clipped(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16))
    assert greys_of(write(tmp_path / "a", encode(grey, "PNG"))) == [0, 1, 128, 255]


def test_12_bit_tiff_is_scaled_to_its_own_white(tmp_path: Path) -> None:
    assert greys_of(write(tmp_path / "a", encode_tiff((2, 1), 12, 1, b"\xff\xf8\x00"))) == [255, 128]


def test_16_bit_tiff_whose_zero_is_white_is_turned_over(tmp_path: Path) -> None:
    assert greys_of(write(tmp_path / "a", encode_tiff((2, 1), 16, 0, struct.pack("<2H", 0, 65535)))) == [255, 0]


@pytest.mark.parametrize(
    ("values", "greys"),
    [
        ([0, 0.5, 1, -0.05], [0, 128, 255, 0]),
        ([0, 0.02, 0.01, 0.02], [0, 5, 3, 5]),
        ([0, 0.5, 1, 1.05], [0, 128, 255, 255]),
        ([0, 128, 255, float("nan")], [0, 128, 255, 0]),
        ([-20, 128, 200, 270], [0, 128, 200, 255]),
        ([0, 257, 65535, float("inf")], [0, 1, 255, 0]),
    ],
)
def test_float_tiff_takes_as_white_the_usual_level_that_its_values_show(
    tmp_path: Path, values: list[float], greys: list[int]
) -> None:
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert greys_of(write(tmp_path / "a", encode(image, "TIFF"))) == greys


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_put_on_white(tmp_path: Path, image_format: str) -> None:
    image = Image.fromarray(np.array([[[200, 100, 50, 255], [200, 100, 50, 128], [0, 0, 0, 0]]], dtype=np.uint8))
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    path = write(tmp_path / "a", encode(image, image_format, **options))
    assert pixels_of(path) == [(200, 100, 50), (227, 177, 152), WHITE]


def test_grey_alpha_and_palette_alpha_are_put_on_white(tmp_path: Path) -> None:
    black, alpha = (Image.fromarray(np.array([levels], dtype=np.uint8)) for levels in ([0, 0, 0], [255, 128, 0]))
    grey = Image.merge("LA", (black, alpha))
    assert greys_of(write(tmp_path / "a", encode(grey, "PNG"))) == [0, 127, 255]
    palette = paint(RED, BLUE).convert("RGBA")
    palette.putpixel((1, 0), (0, 0, 255, 0))
    assert pixels_of(write(tmp_path / "b", encode(palette.convert("PA"), "TIFF"))) == [RED, WHITE]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_transparent_palette_entry_is_white(tmp_path: Path, transparency: bytes | int) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert pixels_of(write(tmp_path / "a", encode(image, "PNG", transparency=transparency))) == [RED, WHITE]
    assert pixels_of(write(tmp_path / "b", encode(image, "GIF", transparency=1))) == [RED, WHITE]


@pytest.mark.parametrize(
    ("depth", "color_type", "row", "transparent", "pixels"),
    [
        (1, 0, b"\x40", struct.pack(">H", 0), [WHITE, WHITE]),
        (2, 0, b"\x10", struct.pack(">H", 1), [BLACK, WHITE]),
        (4, 0, b"\x07", struct.pack(">H", 7), [BLACK, WHITE]),
        (8, 0, b"\x08\x07", struct.pack(">H", 7), [(8, 8, 8), WHITE]),
        (16, 0, b"\x80\x00\x12\x34", struct.pack(">H", 0x1234), [(128, 128, 128), WHITE]),
        (8, 2, b"\x01\x02\x03\x04\x05\x06", struct.pack(">3H", 4, 5, 6), [(1, 2, 3), WHITE]),
        (16, 2, b"\x80\x00" * 3 + b"\x12\x34" * 3, struct.pack(">3H", *[0x1234] * 3), [(128, 128, 128), WHITE]),
    ],
)
def test_transparent_color_of_a_png_is_white_at_every_depth(
    tmp_path: Path, depth: int, color_type: int, row: bytes, transparent: bytes, pixels: list[tuple[int, int, int]]
) -> None:
    content = encode_png((2, 1), depth, color_type, row, (b"tRNS", transparent))
    assert pixels_of(write(tmp_path / "a", content)) == pixels


@pytest.mark.parametrize(
    ("orientation", "rows"),
    [
        (1, [[0, 40, 80], [120, 160, 200]]),
        (2, [[80, 40, 0], [200, 160, 120]]),
        (3, [[200, 160, 120], [80, 40, 0]]),
        (4, [[120, 160, 200], [0, 40, 80]]),
        (5, [[0, 120], [40, 160], [80, 200]]),
        (6, [[120, 0], [160, 40], [200, 80]]),
        (7, [[200, 80], [160, 40], [120, 0]]),
        (8, [[80, 200], [40, 160], [0, 120]]),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TIFF lzw", "PNG big-endian"])
def test_exif_orientation_is_applied_once(tmp_path: Path, kind: str, orientation: int, rows: list[list[int]]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif.endian = ">" if "big-endian" in kind else "<"
    options: dict[str, dict[str, object]] = {"WEBP": {"lossless": True}, "TIFF lzw": {"compression": "tiff_lzw"}}
    grey = Image.fromarray(np.array([[0, 40, 80], [120, 160, 200]], dtype=np.uint8))
    path = write(tmp_path / "a", encode(grey, kind.partition(" ")[0], exif=exif, **options.get(kind, {})))
    image = load_image(path)
    assert np.asarray(image)[:, :, 0].tolist() == rows
    assert image.getexif().get(ORIENTATION) is None


def test_exif_orientation_of_a_jpeg_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    assert load_image(write(tmp_path / "a.jpg", encode(NOISE, "JPEG", exif=exif))).size == (48, 64)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II",
        b"not a TIFF header at all",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + bytes(7),
        b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\x82\x9a\0\x05\xff\xff\xff\xff\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f",
    ],
)
def test_broken_exif_is_never_an_error(tmp_path: Path, exif: bytes) -> None:
    for image_format in ("JPEG", "PNG", "WEBP", "MPO"):
        path = write(tmp_path / "a", encode(NOISE, image_format, exif=b"Exif\0\0" + exif))
        assert load_image(path).size == (64, 48)


# Decoding: what cannot be read


def test_missing_empty_and_foreign_files_say_so(tmp_path: Path) -> None:
    foreign = (
        "not an image, or in a format other than JPEG, PNG, WebP, BMP, GIF, TIFF, HEIC, AVIF, JPEG 2000, PSD and PPM"
    )
    assert reason_of(tmp_path / "gone.jpg") == "no such file or directory"
    assert reason_of(tmp_path) == "a folder, not a file"
    assert reason_of(write(tmp_path / "a.jpg", b"")) == "the file is empty"
    assert reason_of(write(tmp_path / "b.jpg", b"404 Not Found")) == foreign
    assert reason_of(write(tmp_path / "c.png", encode(NOISE, "SPIDER"))) == foreign
    assert reason_of(write(tmp_path / "d.jpg", bytes(1000))) == "begins with zeros only; copy it again"
    assert reason_of(tmp_path / "nul\0.jpg") == "embedded null byte"


def test_pipe_is_refused_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "a.jpg")
    assert reason_of(tmp_path / "a.jpg") == "not a regular file"


@needs_permissions
def test_closed_file_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", JPEG)
    path.chmod(0)
    assert reason_of(path) == "permission denied"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 0.9])
def test_truncated_file_says_so(tmp_path: Path, image_format: str, fraction: float) -> None:
    content = encode(NOISE, image_format)
    reason = reason_of(write(tmp_path / "a", content[: int(len(content) * fraction)]))
    assert reason.startswith("truncated or damaged image (")


def test_damaged_file_says_what_is_wrong(tmp_path: Path) -> None:
    png = bytearray(encode(NOISE, "PNG"))
    png[20] ^= 1
    assert (
        reason_of(write(tmp_path / "a", bytes(png)))
        == "truncated or damaged image (broken PNG file (bad header checksum in b'IHDR'))"
    )


def test_picture_over_the_pixel_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    side = 17_321
    assert side * side > PIXEL_LIMIT
    png = encode_png((side, side), 8, 2, b"")
    assert reason_of(write(tmp_path / "a.png", png)) == "17,321 x 17,321 pixels, over the limit of 300,000,000 pixels"


def test_picture_above_pillows_own_limit_is_read_without_a_warning(tmp_path: Path) -> None:
    content = encode(Image.new("1", (9_460, 9_460), 1), "TIFF", compression="group4")
    image = load_image(write(tmp_path / "a.tif", content))
    assert (image.size, image.getpixel((9459, 9459))) == ((9_460, 9_460), WHITE)


def test_webp_canvas_far_over_the_limit_is_refused(tmp_path: Path) -> None:
    frames = [paint(RED, RED), paint(BLUE, BLUE)]
    content = bytearray(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    content[24:27] = content[27:30] = (30_000).to_bytes(3, "little")
    assert reason_of(write(tmp_path / "a.webp", bytes(content))).endswith("over the limit of 300,000,000 pixels")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_flipped_bytes_give_an_image_or_an_image_error(tmp_path: Path, image_format: str) -> None:
    content = encode(NOISE.resize((16, 12)), image_format)
    random = np.random.RandomState(1)
    outcomes = set()
    for _ in range(60):
        damaged = np.frombuffer(content, dtype=np.uint8).copy()
        damaged[random.randint(0, len(damaged), 3)] = random.randint(0, 256, 3)
        path = write(tmp_path / "a", damaged.tobytes())
        try:
            outcomes.add(load_image(path).mode)
        except ImageError:
            outcomes.add("ImageError")
    expected = {"ImageError"} if image_format == "PNG" else {"RGB", "ImageError"}  # all parts of a PNG have checksums
    assert outcomes == expected


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_tiff_with_damaged_metadata_is_read_where_warnings_are_not_errors(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[305] = "a name of software that lies beyond the end of the file"
    content = bytearray(encode(paint(RED, BLUE), "TIFF", tiffinfo=tags))
    entry = content.index(struct.pack("<HH", 305, 2))
    content[entry + 4 : entry + 8] = struct.pack("<I", 1_000_000)
    assert pixels_of(write(tmp_path / "a.tif", bytes(content))) == [RED, BLUE]


# JPEGs: pixel for pixel what Pillow makes of them, and smaller where they are to be made smaller anyway

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (8, 8), (9, 17), (15, 16), (16, 16), (17, 33), (48, 64), (101, 77)]


def draw_detail(width: int, height: int) -> Image.Image:
    """Blurred noise in colour: every chroma subsampling loses something of it."""
    noise = np.random.default_rng(width * 1000 + height).integers(
        0, 256, (height // 3 + 2, width // 3 + 2, 3), np.uint8
    )
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode_rotated(image: Image.Image, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(image, "JPEG", exif=exif, **options)


def decode_by_pillow(content: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def reason_of_damage(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(content)
    return str(caught.value)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", ["4:4:4", "4:2:2", "4:2:0", "grey", "stored as RGB"])
def test_undamaged_jpeg_of_any_size_is_pillows_own_decode_exactly(kind: str, progressive: bool) -> None:
    for size in SIZES:
        image = draw_detail(*size).convert("L" if kind == "grey" else "RGB")
        options: dict[str, object] = {"subsampling": kind} if ":" in kind else {"keep_rgb": kind == "stored as RGB"}
        content = encode(image, "JPEG", quality=90, progressive=progressive, **options)
        np.testing.assert_array_equal(np.asarray(decode_image(content)), decode_by_pillow(content), str(size))


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_rare_subsamplings_are_pillows_own_decode_exactly(subsampling: str) -> None:
    for size in SIZES:
        pixels = np.ascontiguousarray(draw_detail(*size))
        content = simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling=subsampling)
        np.testing.assert_array_equal(np.asarray(decode_image(content)), decode_by_pillow(content), str(size))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_in_any_exif_orientation_is_pillows_own_decode_exactly(orientation: int) -> None:
    content = encode_rotated(draw_detail(101, 77), orientation)
    image = decode_image(content)
    assert image.size == ((101, 77) if orientation < 5 else (77, 101))
    np.testing.assert_array_equal(np.asarray(image), decode_by_pillow(content))


@pytest.mark.parametrize("transform", [0, 2])
def test_cmyk_and_ycck_jpegs_are_pillows_own_decode_exactly(transform: int) -> None:
    content = bytearray(encode(draw_detail(101, 77).convert("CMYK"), "JPEG", quality=90))
    content[content.index(b"Adobe") + 11] = transform  # 0 is CMYK, 2 is YCCK
    with Image.open(io.BytesIO(content)) as image:
        assert (image.mode, image.info["adobe_transform"]) == ("CMYK", transform)
    np.testing.assert_array_equal(np.asarray(decode_image(bytes(content))), decode_by_pillow(bytes(content)))


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg_is_an_error_with_a_reason_wherever_it_ends(progressive: bool) -> None:
    content = encode(draw_detail(300, 200), "JPEG", quality=90, progressive=progressive)
    assert decode_image(content).size == (300, 200)
    header_end = content.index(b"\xff\xda")
    for kept in [header_end + 20, *(len(content) * share // 10 for share in range(2, 10)), len(content) - 3]:
        reason = reason_of_damage(content[:kept])
        assert reason.startswith("truncated or damaged image (image file is truncated (")
    for kept in (3, 30, header_end - 5):
        assert reason_of_damage(content[:kept]).startswith("truncated or damaged image (")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """3000 x 2000 pixels like a photograph's: smooth gradients under blurred noise from coarse to fine."""
    size = width, height = 3000, 2000
    random = np.random.default_rng(0)
    across, down = (Image.linear_gradient("L").rotate(angle).resize(size) for angle in (90, 0))
    image = Image.merge("RGB", (across, down, ImageOps.invert(across)))
    for cell, share in ((250, 0.5), (50, 0.35), (10, 0.25), (3, 0.15)):
        noise = random.integers(0, 256, (height // cell + 2, width // cell + 2, 3), np.uint8)
        image = Image.blend(image, Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), share)
    return image


@pytest.fixture(scope="module")
def photo_contents(photo: Image.Image) -> dict[int, bytes]:
    """The photo as a JPEG, by EXIF orientation: 1 lies, 6 stands."""
    return {orientation: encode_rotated(photo, orientation, quality=90) for orientation in (1, 6)}


@pytest.fixture(scope="module")
def encoder(thin_weights: Path) -> Encoder:
    return build_encoder(ExtractConfig("scenes-resnet14", weights=str(thin_weights)))


def prepare_as(encoder: Encoder, preprocess: Preprocess, image_size: int) -> Encoder:
    """`encoder` with other preprocessing."""
    resize_size = image_size * 8 // 7 if preprocess == "crop" else image_size
    return replace(
        encoder,
        spec=replace(encoder.spec, preprocess=preprocess, image_size=image_size, resize_size=resize_size),
    )


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("preprocess", ["squash", "crop", "whole"])
@pytest.mark.parametrize(("image_size", "eighths"), [(424, 6), (352, 5), (272, 4), (200, 3), (112, 2), (64, 1)])
def test_large_jpeg_is_decoded_smaller_and_prepared_all_but_the_same(
    encoder: Encoder,
    photo_contents: dict[int, bytes],
    image_size: int,
    eighths: int,
    preprocess: Preprocess,
    orientation: int,
) -> None:
    content, encoder = photo_contents[orientation], prepare_as(encoder, preprocess, image_size)
    full, reduced = decode_image(content), decode_image(content, at_least=encoder.least_size)
    assert full.size == ((3000, 2000) if orientation == 1 else (2000, 3000))
    assert reduced.size == (full.width * eighths // 8, full.height * eighths // 8)
    least_width, least_height = encoder.least_size(*full.size)
    assert reduced.width >= REDUCING_GAP * least_width
    assert reduced.height >= REDUCING_GAP * least_height
    difference = np.abs(encoder.prepare(np.asarray(reduced)).astype(int) - encoder.prepare(np.asarray(full)))
    assert difference.mean() < 0.5  # levels of 255; at most 0.46, at six eighths, measured with libjpeg-turbo 3.2
    assert difference.max() <= 4  # at most 2 measured


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_reduced_jpeg_is_what_pillows_draft_gives_in_every_mode(photo: Image.Image, mode: str) -> None:
    content = encode(photo.resize((1200, 800)).convert(mode), "JPEG", quality=90, progressive=True)
    with Image.open(io.BytesIO(content)) as image:
        image.draft(None, (300, 200))
        expected = np.asarray(image.convert("RGB"))
    assert expected.shape == (200, 300, 3)
    np.testing.assert_array_equal(np.asarray(decode_image(content, at_least=lambda *_: (64, 64))), expected)


@pytest.mark.parametrize(
    ("side", "by_turbo", "by_pillow"), [(84, 151, 201), (68, 126, 201), (52, 101, 101), (50, 76, 101), (25, 51, 51)]
)
def test_jpeg_that_libjpeg_turbo_refuses_is_decoded_at_the_next_power_of_two(
    photo: Image.Image, side: int, by_turbo: int, by_pillow: int
) -> None:
    for mode, decoded in (("RGB", by_turbo), ("CMYK", by_pillow)):
        content = encode(photo.resize((401, 201)).convert(mode), "JPEG")
        assert decode_pixels(content, at_least=lambda *_: (side, side // 2)).shape[0] == decoded


@pytest.mark.parametrize(
    ("side", "decoded"),
    [
        *((64, 64), (192, 192), (255, 255), (256, 192), (307, 231), (308, 193), (383, 240), (384, 192), (511, 256)),
        *((512, 192), (767, 288), (768, 192), (1535, 384), (1536, 192), (3073, 385)),
    ],
)
def test_jpeg_is_reduced_only_as_far_as_leaves_three_times_the_target(side: int, decoded: int) -> None:
    assert REDUCING_GAP == 3
    content = encode(Image.new("RGB", (side, side), "white"), "JPEG")
    assert decode_image(content, at_least=lambda *_: (64, 64)).size == (decoded, decoded)


def test_side_that_is_nearest_to_its_target_decides_how_far_a_jpeg_is_reduced() -> None:
    content = encode(Image.new("RGB", (3000, 600), "white"), "JPEG")
    assert decode_image(content, at_least=lambda *_: (50, 50)).size == (750, 150)
    assert decode_image(content, at_least=lambda *_: (400, 50)).size == (1500, 300)
    assert decode_image(content, at_least=lambda *_: (600, 50)).size == (1875, 375)
    assert decode_image(content, at_least=lambda *_: (626, 50)).size == (2250, 450)
    assert decode_image(content, at_least=lambda *_: (751, 50)).size == (3000, 600)


def test_target_is_asked_for_and_met_by_the_picture_as_it_stands_upright() -> None:
    sizes = []

    def at_least(width: int, height: int) -> tuple[int, int]:
        sizes.append((width, height))
        return 50, 400

    content = encode_rotated(Image.new("RGB", (3000, 600), "white"), 6)
    assert decode_image(content, at_least=at_least).size == (300, 1500)
    assert sizes[0] == (600, 3000)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_come_at_their_own_size(image_format: str) -> None:
    content = encode(Image.new("RGB", (640, 480), "white"), image_format)
    assert decode_image(content, at_least=lambda *_: (8, 8)).size == (640, 480)


@pytest.mark.parametrize(
    ("preprocess", "size", "least"),
    [
        ("squash", (3000, 2000), (224, 224)),
        ("squash", (100, 900), (224, 224)),
        ("crop", (3000, 2000), (384, 256)),
        ("crop", (2000, 3000), (256, 384)),
        ("crop", (500, 375), (341, 256)),
        ("crop", (100, 100), (256, 256)),
        ("whole", (3000, 2000), (320, 224)),
        ("whole", (2000, 3000), (224, 320)),
        ("whole", (640, 480), (288, 224)),
        ("whole", (100, 1000), (224, 896)),
        ("whole", (230, 229), (224, 224)),
    ],
)
def test_least_size_is_the_size_before_anything_is_cut_off(
    encoder: Encoder, preprocess: Preprocess, size: tuple[int, int], least: tuple[int, int]
) -> None:
    encoder = prepare_as(encoder, preprocess, 224)
    assert encoder.least_size(*size) == least
    height, width, _ = encoder.prepare(np.zeros((size[1], size[0], 3), np.uint8)).shape
    assert (width, height) == ((224, 224) if preprocess == "crop" else least)


@pytest.mark.parametrize(("size", "decoded"), [((3000, 2000), (1125, 750)), ((2999, 1999), (2999, 1999))])
def test_reduced_jpeg_is_prepared_in_the_shape_of_the_whole_one(
    encoder: Encoder, size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    encoder = prepare_as(encoder, "whole", 224)
    content = encode(Image.new("RGB", size), "JPEG")
    reduced = decode_pixels(content, at_least=encoder.least_size)
    assert reduced.shape == (*decoded[::-1], 3)  # part of 2999 x 1999 would have the shape of another target
    assert encoder.prepare(reduced).shape == encoder.prepare(decode_pixels(content)).shape
