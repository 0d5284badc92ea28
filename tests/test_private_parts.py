"""Parts of other packages that are not promised to stay: each has a test that fails by name when a release moves it."""

import ast
import io
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
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

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


def private_parts(path: Path) -> set[str]:
    """The private names of other packages and modules that the module at `path` imports, reads or sets."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
