"""One share of an extraction, in any process: runs its images through the network into part files of the store."""

import functools
import getpass
import itertools
import math
import os
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from captionmill.data.features.spec import FeatureSpec
from captionmill.data.features.writer import PartWriter
from captionmill.data.images.read import ImageFile
from captionmill.data.progress import Progress, no_progress
from captionmill.stages.encoding.encoder import Encoder, build_encoder
from captionmill.stages.encoding.engine import Engine, build_engine, build_jpeg_decoder, encode_batches
from captionmill.stages.encoding.loader import Failure, load_batches
from captionmill.stages.encoding.meter import Meter
from captionmill.stages.machine import choose_workers, limit_memory, means_cpu, versions
from captionmill.stages.settings import ExtractConfig

if TYPE_CHECKING:
    from captionmill.stages.encoding.engines.jpegs import JpegDecoder

_one_at_a_time = threading.Lock()  # a dask worker runs tasks on threads; only one may use an engine


@dataclass(frozen=True)
class ShareTask:
    """The images for one process; running a share twice does no harm."""

    images: tuple[ImageFile, ...]
    store: Path
    """The store that the parts belong to, on storage that all processes share."""
    prefix: str
    """Prefix of the names of the part files; later parts override earlier ones."""
    spec: FeatureSpec
    config: ExtractConfig


@dataclass(frozen=True)
class ShareResult:
    """The result of one share."""

    extracted: int
    failures: tuple[Failure, ...]
    meter: Meter = field(default_factory=Meter)
    engine: str = ""
    """Device, engine and precision."""


def extract_share(task: ShareTask) -> ShareResult:
    """Run `task` in this process, with a network that is built once and kept for the next tasks.

    Raises WeightsError or SpecMismatchError if this machine has other weights than the task was made with.
    """
    with _one_at_a_time, _ctrl_c_once():
        task = replace(task, config=replace(task.config, device=claim_device(task.config.device)))
        encoder, engine, jpegs = _worker_engine(task.config, task.spec.resize_size)
        task.spec.require(encoder.spec, mine=str(task.store), others="this worker")
        return run_share(task, encoder, engine, jpegs=jpegs)


def run_share(
    task: ShareTask,
    encoder: Encoder,
    engine: Engine,
    *,
    jpegs: "JpegDecoder | None" = None,
    on_part: Callable[[Path], None] | None = None,
    progress: Progress = no_progress,
) -> ShareResult:
    """Run `task` with an existing network; `jpegs` decodes what it can, `on_part` is called with each part file."""
    config = task.config
    limit_memory(config.memory)
    failures: list[Failure] = []
    meter = Meter(workers=choose_workers(config.workers))
    description = f"{engine.description}, {jpegs.description}" if jpegs else engine.description
    batches = load_batches(
        task.images,
        encoder.prepare,
        least_size=encoder.least_size,
        batch_size=engine.batch_size,
        workers=meter.workers,
        prepare_jpegs=jpegs,
    )
    started = time.perf_counter()
    with PartWriter(
        task.store,
        task.prefix,
        task.spec,
        dtype=config.dtype,
        made_by=versions() | {"engine": description},
        flush_every=config.flush_every,
        on_change=on_part,
    ) as writer:
        for batch, features in encode_batches(engine, meter.waiting(batches)):
            with meter.writing():
                if batch.keys:
                    writer.add(batch.keys, features, batch.sources)
            meter.images += len(batch.keys)
            meter.read_s += batch.read_s
            meter.decode_s += batch.decode_s
            failures += batch.failures
            progress("extract", meter.images + len(failures), len(task.images))
        with meter.writing():
            writer.flush()
    meter.wall_s = time.perf_counter() - started
    meter.forward_s = max(0.0, meter.wall_s - meter.input_wait_s - meter.write_s)
    return ShareResult(meter.images, tuple(failures), meter, description)


@contextmanager
def _ctrl_c_once() -> Iterator[None]:
    """Let Ctrl-C end the block in a process that was started with Ctrl-C held back (`open_spread`).

    Pressed again within a second it does nothing, as rows are saved. A job in the background ignores it (SIG_IGN).
    """
    is_main = threading.current_thread() is threading.main_thread()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if hasattr(signal, "pthread_sigmask") else ()
    if not is_main or signal.SIGINT not in mask or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return

    ended_at = -math.inf

    def end(_: int, __: object) -> None:
        nonlocal ended_at
        if time.monotonic() - ended_at > 1:
            ended_at = time.monotonic()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, end)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield
    finally:  # threads that began in the block do not hold the signal back
        signal.signal(signal.SIGINT, lambda _, __: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@functools.lru_cache(maxsize=1)
def _worker_engine(config: ExtractConfig, resize_size: int) -> "tuple[Encoder, Engine, JpegDecoder | None]":
    encoder = build_encoder(config, resize_size=resize_size)
    return encoder, build_engine(encoder, config), build_jpeg_decoder(encoder, config)


def _user() -> str:
    """Who runs this, by number where there are numbers: the user of a container often has no name."""
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


_PLACES = 8  # at most so many processes claim one device; further ones choose by process ID
_claims: list[filelock.FileLock] = []


@functools.cache
def claim_device(name: str) -> str:
    """`name`; if it means any of several CUDA devices, the one that the fewest workers of this machine have claimed.

    A claim lasts as long as this process. More processes than devices share them evenly.
    """
    if means_cpu(name):
        return name
    import torch

    count = torch.cuda.device_count()
    if name not in ("auto", "cuda") or count < 2:
        return name
    # a checksum: as a list of UUIDs it would be too long for the name of a file
    visible = f"{zlib.crc32(os.environ.get('CUDA_VISIBLE_DEVICES', 'all').encode()):08x}"
    for place, index in itertools.product(range(_PLACES), range(count)):
        lock_name = f"captionmill-{_user()}-cuda-{visible}-{index}-{place}.lock"
        lock = filelock.FileLock(Path(tempfile.gettempdir()) / lock_name, fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            continue
        except OSError:  # a folder for temporary files without locks
            break
        _claims.append(lock)
        return f"cuda:{index}"
    return f"cuda:{os.getpid() % count}"
