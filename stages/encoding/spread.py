"""Cuts what an extraction has to do into shares, and has them done: one here, or several in other processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from captionmill.data.features.store import part_paths
from captionmill.data.features.writer import FeatureWriter
from captionmill.data.images.read import ImageFile
from captionmill.data.progress import Progress
from captionmill.stages.encoding.encoder import Encoder
from captionmill.stages.encoding.engine import build_engine
from captionmill.stages.encoding.share import PartResult, PartTask, extract_part, run_part
from captionmill.stages.settings import ExtractConfig

TASK_IMAGES = 4096  # pictures a task at most: what the death of a process costs
_TASKS_A_PROCESS = 4  # so that a slow process does not hold up the end
_USUAL_BATCH = 32  # pictures: a multiple of each engine's own batch

RunTasks = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Runs a function on each task, anywhere; each task's result once, in any order. They may be a pipeline's."""


@dataclass(frozen=True)
class Spread:
    """How an extraction spreads over processes."""

    run: RunTasks
    processes: int
    """About how many tasks run at once."""
    workers: int = 0
    """Decoding threads a process where the config leaves them to the machine; 0: one a core of the worker's machine."""
    least_images: int = 0
    """With fewer to do than these, this process does them itself, before the others would have started."""
    this_machine: bool = True
    """Whether all processes run here, and so see all that this one sees."""


def run_tasks(
    missing: Sequence[ImageFile],
    writer: FeatureWriter,
    encoder: Encoder,
    config: ExtractConfig,
    *,
    spread: Spread | None,
    progress: Progress,
) -> Iterator[PartResult]:
    """Results of the tasks that `missing` is cut into: one task here, or several in other processes."""
    if not missing:
        return
    progress("extract", 0, len(missing))
    if spread is None or len(missing) < spread.least_images:
        task = PartTask(tuple(missing), writer.path, writer.part_prefix(0), encoder.spec, config)
        yield run_part(task, encoder, build_engine(encoder, config), on_part=writer.on_change, progress=progress)
        return
    # other processes have other working folders
    config = replace(config, weights=encoder.spec.weights, workers=config.workers or spread.workers)
    images = [image if isinstance(image.path, str) else replace(image, path=image.path.absolute()) for image in missing]
    share = -(-len(missing) // (_TASKS_A_PROCESS * spread.processes))
    batch = config.batch_size or _USUAL_BATCH
    size = -(-min(TASK_IMAGES, share) // batch) * batch  # whole batches
    tasks = [
        PartTask(
            tuple(images[start : start + size]),
            writer.path.resolve(),
            writer.part_prefix(number),
            encoder.spec,
            config,
        )
        for number, start in enumerate(range(0, len(missing), size))
    ]
    done = 0
    told = set(part_paths(writer.path))

    def tell() -> None:
        for part in set(part_paths(writer.path)).difference(told):
            told.add(part)
            if writer.on_change is not None:
                writer.on_change(part)

    try:
        for result in spread.run(extract_part, tasks):
            tell()
            done += result.extracted + len(result.failures)
            progress("extract", done, len(missing))
            yield result
    finally:
        tell()
