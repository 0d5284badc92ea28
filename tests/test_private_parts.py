"""Parts of other packages that are not promised to stay: each has a test that fails by name when a release moves it."""

import ast
import functools
import importlib
import inspect
import io
import re
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PsdImagePlugin import PsdImageFile

from captionmill.data.images.formats.jpeg import PlainJpegFile

ROOT = Path(__file__).parents[1]
CODE = [path for folder in ("data", "stages", "pipeline") for path in sorted((ROOT / folder).rglob("*.py"))]
PUBLIC = (
    "_replace",
    "_fields",
    "_thread",
    "_exit",
)  # two of a named tuple; a module and a function of the standard library
UNPROMISED = ("externals", "ts_decoder")


def is_private(name: str) -> bool:
    return (name.startswith("_") and not name.startswith("__") and name not in PUBLIC) or name in UNPROMISED


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def private_parts(path: Path) -> set[str]:
    """The private names of other packages and modules that the module at `path` imports, reads or sets."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name for name in names if any(map(is_private, name.split(".")))}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if any(map(is_private, alias.name.split(".")))}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and is_private(node.attr):
            found |= {f"{node.value.id}.{node.attr}"} if node.value.id not in ("self", "cls") else set()
    return found


def test_no_other_private_part_is_used() -> None:
    assert {path.relative_to(ROOT).as_posix(): parts for path in CODE if (parts := private_parts(path))} == {
        "pipeline/cluster.py": {
            "joblib.externals.loky.get_reusable_executor",
            "joblib.externals.loky.process_executor",
            "process_executor._MAX_MEMORY_LEAK_SIZE",
        },
        "stages/encoding/engines/openvino.py": {"openvino.frontend.pytorch.ts_decoder.TorchScriptPythonDecoder"},
    }


def parts_of_base_classes(path: Path) -> set[str]:
    """The private parts of other packages' classes that classes of the module at `path` use or replace as their own."""
    tree = tree_of(path)
    homes: dict[str, str] = {}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("PIL", "click"):
            homes |= {alias.asname or alias.name: node.module for alias in node.names}
    for node in ast.walk(tree):
        for base in node.bases if isinstance(node, ast.ClassDef) else ():
            if isinstance(base, ast.Name) and base.id in homes:
                kind = getattr(importlib.import_module(homes[base.id]), base.id)
                modules = {one.__module__ for one in kind.__mro__ if one.__module__.startswith(("PIL.", "click."))}
                known = {name for one in modules for name in re.findall(r"\w+", inspect.getsource(sys.modules[one]))}
                own = {part.name for part in ast.walk(node) if isinstance(part, ast.FunctionDef)}
                for part in ast.walk(node):
                    if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self":
                        own.add(part.attr)
                found |= {f"{base.id}.{name}" for name in own & known if is_private(name)}
    return found


def test_no_other_private_part_of_a_base_class_is_used() -> None:
    assert {path.relative_to(ROOT).as_posix(): parts for path in CODE if (parts := parts_of_base_classes(path))} == {
        "data/images/formats/jpeg.py": {"JpegImageFile._read_dpi_from_exif"},
        "data/images/formats/openers.py": {
            *("Jpeg2KImageFile._mode", "PsdImageFile._mode"),
            *("PsdImageFile._layers_position", "PsdImageFile._open"),
        },
    }


def test_an_extraction_in_one_process_imports_none_of_them() -> None:
    program = """
import sys
from captionmill.pipeline.cluster import open_spread
with open_spread(1, None) as spread:
    print(spread, sorted({"distributed", "joblib._dask", "openvino", "ray"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "None []\n"
    tree = ast.parse((ROOT / "pipeline" / "cluster.py").read_text(encoding="utf-8"))
    tops = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [line for line in tops if "joblib" in line] == []


def test_joblib_still_has_the_pool_that_can_be_shut_down() -> None:
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=1)
    assert executor.submit(abs, -3).result() == 3
    executor.shutdown(wait=True)
    with pytest.raises((BrokenExecutor, RuntimeError)):
        executor.submit(abs, -3)


def test_joblib_still_has_the_growth_at_which_a_process_is_ended() -> None:
    from joblib.externals.loky import process_executor

    assert hasattr(process_executor, "_MAX_MEMORY_LEAK_SIZE")
    assert "_MAX_MEMORY_LEAK_SIZE" in process_executor._process_worker.__code__.co_names


def test_pillow_still_reads_the_dpi_of_a_jpeg_in_a_method_that_can_be_left_out() -> None:
    exif = Image.Exif()
    exif[0x0128], exif[0x011A] = 2, 300.0  # inches, 300 dots in each
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "JPEG", exif=exif)
    data = buffer.getvalue()
    start = data.index(b"JFIF") - 4  # without the segment that holds a resolution of its own
    data = data[:start] + data[start + 18 :]
    assert JpegImageFile(io.BytesIO(data)).info["dpi"] == (300, 300)
    assert "dpi" not in PlainJpegFile(io.BytesIO(data)).info


def test_pillow_still_keeps_the_mode_of_an_image_where_it_can_be_set() -> None:
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    image = PngImageFile(io.BytesIO(buffer.getvalue()))
    image._mode = "I;16"
    assert image.mode == "I;16"


def test_pillow_still_opens_a_psd_in_a_method_and_says_where_its_layers_begin() -> None:
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 1, 1, 8, 3)  # three channels of one pixel in RGB
    layers = struct.pack(">IIh", 6, 2, -1)  # of all, of the layers, and how many
    data = header + bytes(8) + layers + struct.pack(">H", 0) + bytes(3)
    opened: list[int | None] = []

    class Psd(PsdImageFile):
        def _open(self) -> None:
            super()._open()
            opened.append(self._layers_position)

    assert Psd(io.BytesIO(data)).mode == "RGB"
    assert opened == [data.index(layers) + 8]


@pytest.mark.parametrize(
    ("bits", "color_type", "rawmode"),
    [(2, 0, "L;2"), (4, 0, "L;4"), (8, 0, "L"), (8, 2, "RGB"), (16, 2, "RGB;16B")],
    ids=["2-bit grey", "4-bit grey", "8-bit grey", "8-bit colour", "16-bit colour"],
)
def test_pillow_still_says_how_the_pixels_of_a_png_are_packed(bits: int, color_type: int, rawmode: str) -> None:
    row = bytes(1 + max(1, bits * (3 if color_type == 2 else 1) // 8))  # its filter, and one black pixel
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 1, 1, bits, color_type, 0, 0, 0),
        b"IDAT": zlib.compress(row),
        b"IEND": b"",
    }
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks.items():
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    assert PngImageFile(io.BytesIO(data)).tile[0][3] == rawmode


@pytest.mark.parametrize("kind", ["GIF", "PPM", "TIFF", "JPEG2000", "PNG"])
def test_pillow_still_says_where_the_pixels_of_a_file_are_until_they_are_loaded(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, kind)
    image = Image.open(file)
    assert isinstance(image, ImageFile)
    (tile,) = image.tile
    assert tile[1] == tile.extents == (0, 0, 3, 2)
    if kind == "PPM":
        assert (file.getvalue()[tile.offset :], tile.args) == (bytes(18), "RGB")
    image.load()
    assert not image.tile


def test_openvino_is_imported_without_the_package_that_reports_to_its_makers() -> None:
    from captionmill.stages.encoding.engines.openvino import openvino

    assert openvino.convert_model  # what imports the reports
    assert sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert "openvino_telemetry" not in sys.modules  # nor is it in the way of others


def test_openvino_still_converts_a_traced_network_without_telling_its_makers() -> None:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    module = torch.nn.Linear(2, 3).eval()
    front_end = FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its tracer
        decoder = TorchScriptPythonDecoder(torch.jit.trace(module, torch.zeros(1, 2)))
    model = front_end.convert(front_end.load(decoder))
    assert [len(model.inputs), len(model.outputs)] == [1, 1]
