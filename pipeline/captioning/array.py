"""One task of an array job that captions: it extracts its shard of the images into the cache that all tasks share.

The cache is one store. A task adds parts to it without a lock, as a process of a cluster does, and writes no table: the
run that captions joins the parts and writes the one table.
"""

import time
from contextlib import nullcontext
from dataclasses import replace

from captionmill.data.errors import InputError
from captionmill.data.features.parts import NewParts
from captionmill.data.features.shard import Shard, shard_of
from captionmill.data.features.store import FeatureStore, store_exists
from captionmill.data.images.lists import ImagesOf
from captionmill.data.paths import AnyPath, AnyPaths, as_path
from captionmill.data.progress import Progress, no_progress
from captionmill.pipeline.captioning.source import CacheConfig
from captionmill.pipeline.captioning.task import prepare_captions
from captionmill.stages.decoding.trained import read_models
from captionmill.stages.encoding.encoder import encoder_for_spec
from captionmill.stages.encoding.extract import ExtractSummary
from captionmill.stages.encoding.missing import find_missing
from captionmill.stages.encoding.spread import run_tasks
from captionmill.stages.machine import require_machine
from captionmill.stages.table_settings import TableConfig


def extract_for_captions(
    images: ImagesOf,
    model: AnyPaths,
    output: AnyPath,
    shard: tuple[int, int],
    *,
    table: TableConfig = TableConfig(),
    cache: CacheConfig = CacheConfig(),
    progress: Progress = no_progress,
) -> ExtractSummary:
    """Add the missing features of shard (I, N) of `images` to the cache of the table `output`, which is not written.

    Any number of processes may do so at once. `caption_folder` with the same arguments then writes the table; it also
    extracts what they left out, and tries again what could not be read. Raises what `caption_folder` does about its
    arguments.
    """
    started = time.monotonic()
    require_machine(cache.machine)
    spec = read_models(model, weights_later=True).spec
    task = prepare_captions(images, as_path(output), table, cache.features, embed_into=None, overwrite=False)
    if task.found is None:
        raise InputError(f"{images}: holds features already, so there is nothing to extract: leave out `shard`")
    Shard.of([], *shard)  # checks the numbers
    found = shard_of(task.found, *shard)
    path, machine, store = task.store_path, cache.machine, None
    if store_exists(path):
        store = FeatureStore.open(path)
        spec.require(store.spec, mine="the model", others=str(path))
        machine = replace(machine, dtype=store.dtype)
    missing = find_missing(found, store)
    with cache.open_spread(len(missing)) if missing else nullcontext() as spread:
        results = []
        if missing:
            encoder = encoder_for_spec(spec, machine, as_path(cache.weights))
            tasks = run_tasks(missing, NewParts.of(path), encoder, machine, spread=spread, progress=progress)
            results = list(tasks)
        summary = ExtractSummary.of(
            results, path, found=len(found), missing=len(missing), spread=spread, started=started
        )
    return replace(summary, left_out=task.left_out)
