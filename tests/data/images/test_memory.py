"""The budget of memory for images that are being decoded."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from captionmill.data.errors import ImageError
from captionmill.data.images.decode import decode_pixels
from captionmill.data.images.formats.limits import BYTES_PER_PIXEL
from captionmill.data.images.memory import BUDGET, MemoryBudget
from captionmill.data.images.read import ImageFile, read_image
from captionmill.stages.encoding.loader import load_batches
from captionmill.stages.machine import limit_memory, share_memory


@pytest.fixture
def small_budget() -> Iterator[None]:
    limit_memory(0.01)
    yield
    limit_memory(None)


def encoded(image_format: str, size: tuple[int, int], **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, image_format, **options)
    return file.getvalue()


def test_threads_never_hold_more_than_the_budget_and_large_images_wait() -> None:
    budget, lock, held = MemoryBudget(100), threading.Lock(), [0]
    most = []

    def decode(size: int) -> None:
        with budget.one_image():
            budget.take(10)  # what the header says
            budget.take(size)
            with lock:
                held[0] += size
                most.append(held[0])
            with lock:
                held[0] -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [90, 20, 30, 100, 10, 60] * 20))
    assert len(most) == 120
    assert max(most) <= 100


def test_large_files_are_read_one_at_a_time_and_keep_what_they_hold() -> None:
    budget = MemoryBudget(200_000_000)
    done = []

    def decode(number: int) -> None:
        with budget.one_image():
            budget.take_file(90_000_000)
            budget.take(100_000_000)
            done.append(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, range(12)))
    assert sorted(done) == list(range(12))


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_an_image_that_needs_more_is_refused_before_it_is_decoded(image_format: str) -> None:
    data = encoded(image_format, (900, 1000))
    needed = (len(data) + 900 * 1000 * BYTES_PER_PIXEL) / 1e9
    with pytest.raises(ImageError, match=rf"^needs {needed:.2f} GB of memory, over the limit of 0.01 GB; raise `memo"):
        decode_pixels(data)


@pytest.mark.usefixtures("small_budget")
def test_a_jpeg_needs_the_memory_of_the_size_at_which_it_is_decoded() -> None:
    data = encoded("JPEG", (800, 1200))
    with pytest.raises(ImageError, match="over the limit"):
        decode_pixels(data)
    assert decode_pixels(data, at_least=lambda *_: (60, 60)).shape == (300, 200, 3)
    with pytest.raises(ImageError, match="over the limit"):  # Pillow would decode all of it
        decode_pixels(data, at_least=lambda *_: (160, 160))


@pytest.mark.usefixtures("small_budget")
def test_a_refused_image_is_a_failure_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(encoded("PNG", (900, 1000)))
    (tmp_path / "small.png").write_bytes(encoded("PNG", (4, 4)))
    images = [ImageFile(name, tmp_path / name) for name in ("large.png", "small.png")]
    (batch,) = load_batches(images, lambda pixels: pixels, least_size=lambda w, h: (w, h), batch_size=2, workers=2)
    assert batch.keys == ["small.png"]
    assert [(one.key, one.reason.partition(" of memory")[0]) for one in batch.failures] == [
        ("large.png", "needs 0.02 GB")
    ]


@pytest.mark.usefixtures("small_budget")
def test_a_sparse_file_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(3_900_000_000)
    with BUDGET.one_image(), pytest.raises(ImageError, match=r"^needs 3\.90 GB of memory, over the limit of 0\.01 GB"):
        read_image(ImageFile("a.jpg", tmp_path / "a.jpg"))


def test_a_tile_that_is_larger_than_its_image_is_refused() -> None:
    tags = ImageFileDirectory_v2()
    tags.update({256: 11_500, 257: 11_500, 258: (8, 8, 8), 259: 8, 262: 2, 277: 3, 284: 1})
    tags.update({322: 23_000, 323: 23_000, 324: 8, 325: 10})
    file = io.BytesIO(b"II*\0\x08\0\0\0")
    file.seek(8)
    tags.save(file)
    with pytest.raises(ImageError, match="a tile of 23,000 x 23,000 pixels for an image of 11,500 x 11,500 pixels"):
        decode_pixels(file.getvalue())


def test_processes_share_the_memory_of_a_machine() -> None:
    before = BUDGET.limit
    assert share_memory(8.0, 4) == 2.0
    assert share_memory(None, 2) == pytest.approx(before / 2e9)
    assert share_memory(0.2, 100) == 0.1
    limit_memory(1.5)
    assert BUDGET.limit == 1_500_000_000
    limit_memory(None)
    assert before == BUDGET.limit
