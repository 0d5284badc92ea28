"""Cuts an extraction into tasks and runs them: one in this process, or several in other processes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from captionmill.data.features.parts import NewParts, part_paths
from captionmill.data.images.read import ImageFile
from captionmill.data.progress import Progress
from captionmill.stages.encoding.encoder import Encoder, config_for_spec
from captionmill.stages.encoding.engine import build_engine, build_jpeg_decoder
from captionmill.stages.encoding.loader import skip_unreadable
from captionmill.stages.encoding.share import ShareResult, ShareTask, extract_share, run_share
from captionmill.stages.machine import limit_memory, share_memory, unused_gpu_note
from captionmill.stages.settings import ExtractConfig

_logger = logging.getLogger(__name__)

TASK_IMAGES = 4096  # images per task, at most: so many are lost when a process dies
_TASKS_PER_PROCESS = 4  # so that a slow process does not delay the end
_USUAL_BATCH = 32  # images: a multiple of each engine's default batch size

RunTasks = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Runs a function on each task, in any process; yields each result once, in any order. A pipeline may use it."""


@dataclass(frozen=True)
class Spread:
    """How an extraction spreads over processes."""

    run: RunTasks
    processes: int
    """About how many tasks run at once."""
    workers: int = 0
    """Decoding threads per process if the config does not set them; 0: one per core of the worker's machine."""
    least_images: int = 0
    """Fewer images than this are processed here: starting other processes would take longer."""
    this_machine: bool = True
    """Whether all processes run on this machine, and so see the same files."""


def run_tasks(
    missing: Sequence[ImageFile],
    new_parts: NewParts,
    encoder: Encoder,
    config: ExtractConfig,
    *,
    spread: Spread | None,
    before_work: Callable[[], object] = lambda: None,
    progress: Progress,
) -> Iterator[ShareResult]:
    """Results of the tasks that `missing` is cut into: one task here, or several in other processes.

    `before_work` is called before the first of them. Images that could not be read before and still cannot be read do
    not make a task.
    """
    if not missing:
        return
    progress("extract", 0, len(missing))
    limit_memory(config.memory)
    failures, missing = skip_unreadable(missing, least_size=encoder.least_size)
    if failures:
        yield ShareResult(0, failures)
    if not missing:
        return
    if note := unused_gpu_note(config.device):
        _logger.warning(note)
    before_work()
    if spread is None or len(missing) < spread.least_images:
        task = ShareTask(tuple(missing), new_parts.path, new_parts.prefix(0), encoder.spec, config)
        engine, jpegs = build_engine(encoder, config), build_jpeg_decoder(encoder, config)
        yield run_share(task, encoder, engine, jpegs=jpegs, on_part=new_parts.on_change, progress=progress)
        return
    # other processes have other working folders
    config = replace(config_for_spec(encoder.spec, config), workers=config.workers or spread.workers)
    if spread.this_machine:
        config = replace(config, memory=share_memory(config.memory, spread.processes))
    images = [image if isinstance(image.path, str) else replace(image, path=image.path.absolute()) for image in missing]
    share = -(-len(missing) // (_TASKS_PER_PROCESS * spread.processes))
    batch = config.batch_size or _USUAL_BATCH
    size = -(-min(TASK_IMAGES, share) // batch) * batch  # whole batches
    tasks = [
        ShareTask(
            tuple(images[start : start + size]),
            new_parts.path.resolve(),
            new_parts.prefix(number),
            encoder.spec,
            config,
        )
        for number, start in enumerate(range(0, len(missing), size))
    ]
    done = 0
    reported = set(part_paths(new_parts.path))

    def report_parts() -> None:
        for part in set(part_paths(new_parts.path)).difference(reported):
            reported.add(part)
            if new_parts.on_change is not None:
                new_parts.on_change(part)

    try:
        for result in spread.run(extract_share, tasks):
            report_parts()
            done += result.extracted + len(result.failures)
            progress("extract", done, len(missing))
            yield result
    finally:
        report_parts()
