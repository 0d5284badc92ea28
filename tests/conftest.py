"""Small real parts for the tests: a thin ResNet's weights, a folder of pictures."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fork_server import start_server

if TYPE_CHECKING:  # a process that only hands out the tests need not wait for torch
    from browser import Browser


LONG = (
    *("test_export", "test_java", "test_demo", "test_run", "test_ctrl_c", "test_update", "test_store", "test_cluster"),
    *("test_extract", "test_decode", "test_cli", "test_doc_commands", "test_parallel", "test_site", "test_explain"),
    *("test_engine", "test_images", "test_resume", "test_gallery", "test_review", "test_run_report"),
    *("test_store_access", "test_search", "test_startup", "test_folder"),
)
MEMORY_NEEDED = 3 << 30
"""Bytes that must be free for files in memory; those of all tests, if none were removed, are 1.2 GB."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first: so no process of the tests is left working when the others are done."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_configure(config: pytest.Config) -> None:
    """Give all processes of the tests one cache, apart from that of whoever runs them, and the workers one server."""
    gc.set_threshold(10_000, 20, 20)  # of what imports and syntax trees make, little is garbage
    if not hasattr(config, "workerinput"):
        os.environ["CAPTIONMILL_CACHE"] = tempfile.mkdtemp(prefix="captionmill-tests-")
        memory = Path("/dev/shm")
        if memory.is_dir() and shutil.disk_usage(memory).free > MEMORY_NEEDED:
            # Tens of thousands of files are renamed and removed, and no test sees whether they lie on a disk.
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))
        if config.getoption("numprocesses", None):
            start_server()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop("CAPTIONMILL_CACHE"), ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def prepared_process() -> None:
    """Threads and seeds of torch's, and the server of `processes.py`."""
    import torch
    from processes import share_loaded_modules

    torch.set_num_threads(1)  # the cores are for the workers
    if not torch.cuda.is_available():  # else each call notes the stack three times, for devices that are not there
        torch.manual_seed = torch.default_generator.manual_seed
    share_loaded_modules()
    os.fsync = lambda fd: None  # no test can see whether the disk has it
    gc.freeze()  # all that was imported stays: to search it for garbage takes a quarter of a second each time


@pytest.fixture(scope="session")
def thin_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the demo's backbone, as a .safetensors file."""
    import safetensors.torch
    import torch
    from torchvision.models import ResNet
    from torchvision.models.resnet import Bottleneck

    torch.manual_seed(0)
    network = ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=5)
    path = tmp_path_factory.mktemp("weights") / "thin.safetensors"
    safetensors.torch.save_file({k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}, path)
    return path


@pytest.fixture(scope="session", autouse=True)
def blank_curves() -> Iterator[None]:
    """The curves of a training, twice as long in the drawing as a small training takes, are an empty file."""
    from captionmill.stages import charts

    with pytest.MonkeyPatch.context() as monkeypatch:  # before the models that several tests share are trained
        monkeypatch.setattr(charts, "draw_curves", lambda path, rows, **_: path.touch())
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder as `draw_photos` makes it."""
    from builders import draw_photos

    return draw_photos(tmp_path / "photos")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """A headless Chromium, one for all tests of a process; who asks for it is skipped where there is none."""
    from browser import Browser

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed")
    folder = tmp_path_factory.mktemp("browser")
    with Browser(program, folder) as opened:
        yield opened
    shutil.rmtree(folder, ignore_errors=True)
