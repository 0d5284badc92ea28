"""An extraction over several processes writes what one process writes, whoever dies on the way."""

import logging
import os
import pwd
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from builders import thin_config
from PIL import Image
from processes import Child

from captionmill.data.errors import ClusterError, InputError, SpecMismatchError
from captionmill.data.features.parts import parts_dir
from captionmill.data.features.store import FeatureStore
from captionmill.pipeline.cluster import open_spread
from captionmill.stages.encoding.extract import extract
from captionmill.stages.encoding.share import ShareResult, ShareTask, claim_device
from captionmill.stages.encoding.spread import Spread
from captionmill.stages.settings import ExtractConfig

IMAGE_COUNT = 240


@pytest.fixture(scope="module")
def config(thin_weights: Path) -> ExtractConfig:
    return thin_config(thin_weights, batch_size=4, flush_every=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small pictures and two files that are none."""
    folder = tmp_path_factory.mktemp("cluster") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGE_COUNT):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    for name in ("050x.png", "150x.png"):
        (folder / name).write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path, config: ExtractConfig) -> FeatureStore:
    """The store that one process makes, on one thread as the others: the order of sums depends on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    extract(folder, folder.parent / "alone.h5", replace(config, flush_every=IMAGE_COUNT))
    torch.set_num_threads(threads)
    return FeatureStore.open(folder.parent / "alone.h5")


@pytest.fixture(scope="module")
def dask_address() -> Iterator[str]:
    """A dask cluster of two worker processes on loopback."""
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    environment = dict(os.environ)  # dask sets OMP_NUM_THREADS and others for its workers here, and leaves them
    forkserver.ensure_running()  # before dask names modules of its own to load
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs="CRITICAL"
        ) as cluster,
    ):
        yield cluster.scheduler_address.removeprefix("tcp://")
    for name in set(os.environ).difference(environment):
        del os.environ[name]
    os.environ.update(environment)


def dying_once(spread: Spread, marker: Path) -> Spread:
    """`spread`, but the first process that does the first task is killed when it is about to store a second part."""

    def run(function: Callable[[ShareTask], ShareResult], tasks: Sequence[ShareTask]) -> Iterator[ShareResult]:
        def run_and_die(task: ShareTask) -> ShareResult:
            def kill_at_second_part(event: str, arguments: tuple[object, ...]) -> None:
                parts = len(list(parts_dir(task.store).glob(f"{task.prefix}-*"))) if event == "os.rename" else 0
                if parts and not marker.exists() and Path(str(arguments[1])).name.startswith(task.prefix):
                    marker.write_text(f"{parts}")
                    os.kill(os.getpid(), signal.SIGKILL)

            if task.prefix == tasks[0].prefix and not marker.exists():
                sys.addaudithook(kill_at_second_part)
            return function(task)

        return spread.run(run_and_die, tasks)

    return replace(spread, run=run)


def require_same(path: Path, alone: FeatureStore) -> None:
    store = FeatureStore.open(path)
    assert store.keys == alone.keys
    assert store.verify() == []
    assert store.digest() == alone.digest()
    assert not parts_dir(path).exists()


def test_two_processes_write_what_one_writes_though_one_is_killed(
    folder: Path,
    config: ExtractConfig,
    alone: FeatureStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(folder.parent)
    seen: list[int] = []

    def note_done(label: str, done: int, total: int, **_: object) -> None:
        seen.append(done)

    with open_spread(2, None) as spread:
        assert spread is not None
        dying = dying_once(spread, tmp_path / "killed")
        summary = extract(Path("photos"), tmp_path / "f.h5", config, spread=dying, progress=note_done)
    assert (tmp_path / "killed").read_text() == "1"  # of the eight parts of its task
    assert "a worker died: " in caplog.text
    assert (summary.found, summary.extracted) == (IMAGE_COUNT + 2, IMAGE_COUNT)
    assert [failure.key for failure in summary.failures] == ["050x.png", "150x.png"]
    assert seen == sorted(seen)
    assert seen[-1] == IMAGE_COUNT + 2
    assert len(seen) > 4  # it is told of each task
    require_same(tmp_path / "f.h5", alone)


def test_a_dask_cluster_writes_what_one_process_writes_though_a_worker_is_killed(
    dask_address: str, folder: Path, config: ExtractConfig, alone: FeatureStore, tmp_path: Path
) -> None:
    with open_spread(0, f"dask://{dask_address}") as spread:
        assert spread is not None
        assert spread.processes == 2
        summary = extract(folder, tmp_path / "f.h5", config, spread=dying_once(spread, tmp_path / "killed"))
    assert (tmp_path / "killed").read_text() == "1"
    assert (summary.extracted, len(summary.failures)) == (IMAGE_COUNT, 2)
    require_same(tmp_path / "f.h5", alone)


def test_workers_that_always_die_end_the_run_and_keep_what_there_is(
    folder: Path, config: ExtractConfig, alone: FeatureStore, tmp_path: Path
) -> None:
    def die(_: ShareTask) -> ShareResult:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    extract(folder, tmp_path / "f.h5", replace(config, flush_every=IMAGE_COUNT), limit=100)
    with open_spread(2, None, attempts=2) as spread:
        assert spread is not None
        dead = replace(spread, run=lambda function, tasks: spread.run(die, tasks))
        with pytest.raises(ClusterError, match="workers died 2 times while no task was done"):
            extract(folder, tmp_path / "f.h5", config, spread=dead)
    store = FeatureStore.open(tmp_path / "f.h5")
    assert store.keys == alone.keys[:99]
    assert store.verify() == []


def test_a_worker_with_other_weights_is_refused(folder: Path, config: ExtractConfig, tmp_path: Path) -> None:
    def run(function: Callable[[ShareTask], ShareResult], tasks: Sequence[ShareTask]) -> Iterator[ShareResult]:
        for task in tasks:
            yield function(replace(task, config=replace(task.config, weights="drawn-scenes")))

    with pytest.raises(SpecMismatchError, match=r"this worker do not fit: .* has weights: "):
        extract(folder, tmp_path / "f.h5", config, spread=Spread(run, 2))
    assert not (tmp_path / "f.h5").exists()


def test_one_process_is_no_spread() -> None:
    with open_spread(1, None) as spread:
        assert spread is None


@pytest.mark.parametrize(
    ("jobs", "cluster", "message"),
    [
        (2, "dask://127.0.0.1:1", "`jobs` is for this machine"),
        (0, "slurm://127.0.0.1:1", "use dask://HOST:PORT or ray://HOST:PORT"),
        (0, "dask://", "use dask://HOST:PORT or ray://HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_meant_is_refused(jobs: int, cluster: str, message: str) -> None:
    with pytest.raises(InputError, match=message), open_spread(jobs, cluster):
        pass


def test_a_cluster_may_appear_while_it_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = threading.Event()
    ended = threading.Event()

    def start() -> None:
        started.wait()
        with distributed.LocalCluster(
            n_workers=1, processes=False, scheduler_port=port, dashboard_address="127.0.0.1:0", silence_logs="CRITICAL"
        ):
            ended.wait()

    def start_the_cluster(_: logging.LogRecord) -> bool:
        started.set()
        return True

    caplog.handler.addFilter(start_the_cluster)  # once it is waited for
    thread = threading.Thread(target=start)
    thread.start()
    try:
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
            open_spread(0, f"dask://127.0.0.1:{port}", wait_s=60) as spread,
        ):
            assert spread is not None
            assert spread.processes == 1
        assert caplog.messages[0] == f"dask://127.0.0.1:{port}: waiting up to 60 s for the scheduler"
    finally:
        started.set()
        ended.set()
        thread.join()


def test_processes_of_one_machine_claim_different_gpus_until_they_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claim_device.__wrapped__  # what a process without an earlier claim calls
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/dev/nvidiactl" or exists(self))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the claims lie
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(f"GPU-{number:036d}" for number in range(8)))
    assert claim("auto") == "cuda:0"
    assert claim("cpu") == "cpu"
    assert claim("cuda:0") == "cuda:0"
    program = """
import time, torch
torch.cuda.device_count = lambda: 2
from pathlib import Path
from captionmill.stages.encoding.share import claim_device
Path.exists = lambda self, real=Path.exists: str(self) == "/dev/nvidiactl" or real(self)
print(claim_device("auto"), claim_device("auto"), flush=True)
while True:
    time.sleep(1)
"""
    said = tmp_path / "said"
    with Child(program, output=said) as other:
        while not (said.exists() and said.read_text().endswith("\n")):
            assert other.is_running()
            time.sleep(0.01)
        assert said.read_text() == "cuda:1 cuda:1\n"
        assert [claim("auto") for _ in range(2)] == ["cuda:0", "cuda:1"]  # all are taken: each is shared once
    assert claim("auto") == "cuda:1"


def test_a_user_without_a_name_claims_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_no_name(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", find_no_name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/dev/nvidiactl" or exists(self))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert claim_device.__wrapped__("auto") == "cuda:0"


@pytest.mark.parametrize(
    ("device", "gpus", "cores", "processes"),
    [
        ("auto", 0, 64, 1),
        ("cpu", 8, 64, 1),
        ("auto", 1, 2, 1),
        ("auto", 1, 16, 4),
        ("cuda:1", 2, 64, 4),
        ("cuda", 2, 16, 4),
        ("auto", 8, 16, 8),
    ],
)
def test_as_many_processes_as_gpus_and_cores_can_feed(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, cores: int, processes: int
) -> None:
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/dev/nvidiactl" or exists(self))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    with open_spread(0, None, device=device) as spread:
        assert (spread.processes if spread else 1) == processes


def test_few_images_are_done_before_other_processes_would_have_started(
    folder: Path, config: ExtractConfig, alone: FeatureStore, tmp_path: Path
) -> None:
    def never(function: Callable[[ShareTask], ShareResult], tasks: Sequence[ShareTask]) -> Iterator[ShareResult]:
        raise AssertionError("another process was asked for")

    config = replace(config, flush_every=IMAGE_COUNT)
    extract(folder, tmp_path / "few.h5", config, spread=Spread(never, 4, least_images=IMAGE_COUNT + 3))
    assert FeatureStore.open(tmp_path / "few.h5").keys == alone.keys
    with pytest.raises(AssertionError, match="another process"):
        extract(folder, tmp_path / "many.h5", config, spread=Spread(never, 4, least_images=IMAGE_COUNT + 2))
