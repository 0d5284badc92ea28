"""Runs the tasks of an extraction in many processes, here or on a cluster, on joblib's backends.

There is no scheduler of ours. A worker that dies costs its task: what it had stored stays, and the task is done again
elsewhere.
"""

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from typing import Any

import joblib
import torch
from joblib.externals.loky import get_reusable_executor

from captionmill.data.errors import ClusterError, InputError
from captionmill.stages.encoding.extract import RunTasks, Spread
from captionmill.stages.encoding.part import PartResult, PartTask

_ATTEMPTS = 3  # rounds in a row in which a worker dies and no task is done
_logger = logging.getLogger(__name__)


@contextmanager
def open_spread(jobs: int, cluster: str | None, *, device: str = "auto") -> Iterator[Spread | None]:
    """Processes to extract with while the block lasts, or None for this process alone.

    `jobs`: processes on this machine, 0 for one a GPU if `device` is "auto" or "cuda" and there are several. `cluster`:
    dask://HOST:PORT or ray://HOST:PORT; its machines need captionmill and the same paths to images, weights and store.

    Raises InputError for another `cluster` or a missing package, ClusterError if the cluster cannot be reached; using
    what it gives raises ClusterError when workers keep dying.
    """
    if cluster is None:
        processes = jobs or (torch.cuda.device_count() if device in ("auto", "cuda") else 1)
        if processes < 2:
            yield None
            return
        threads = max(1, joblib.cpu_count() // processes)
        try:
            with joblib.parallel_config(backend="loky", n_jobs=processes, inner_max_num_threads=threads):
                yield Spread(_retrying("generator_unordered", (BrokenExecutor,)), processes, threads)
        finally:
            get_reusable_executor().shutdown(wait=True)  # they hold a network each
        return
    if jobs:
        raise InputError("--jobs is for this machine: with --cluster, the cluster's workers are the processes")
    kind, _, address = cluster.partition("://")
    connect = {"dask": _connect_dask, "ray": _connect_ray}.get(kind)
    if connect is None or not address:
        raise InputError(f"--cluster {cluster}: use dask://HOST:PORT or ray://HOST:PORT")
    with connect(address) as spread:
        yield spread


@contextmanager
def _connect_dask(address: str) -> Iterator[Spread]:
    distributed = _import("distributed", extra="dask")
    try:
        client = distributed.Client(f"tcp://{address}", set_as_default=False)
    except (OSError, ValueError) as exc:
        raise ClusterError(f"dask://{address}: no dask scheduler answers ({_first_words(exc)})") from exc
    with client, joblib.parallel_config(backend="dask", client=client):
        if not (processes := len(client.scheduler_info(n_workers=-1)["workers"])):
            raise ClusterError(f"dask://{address}: the cluster has no workers; start `dask worker tcp://{address}`")
        yield Spread(_retrying("generator_unordered", (distributed.scheduler.KilledWorker,)), processes)


@contextmanager
def _connect_ray(address: str) -> Iterator[Spread]:
    ray = _import("ray", extra="ray")
    try:
        ray.init(address=f"ray://{address}", log_to_driver=False)
    except (OSError, ValueError, ConnectionError) as exc:
        raise ClusterError(f"ray://{address}: no ray cluster answers ({_first_words(exc)})") from exc
    try:
        _import("ray.util.joblib", extra="ray").register_ray()
        processes = max(1, int(ray.cluster_resources().get("CPU", 1)))
        with joblib.parallel_config(backend="ray", n_jobs=processes):
            yield Spread(_retrying("list", (ray.exceptions.RayError,)), processes)
    finally:
        ray.shutdown()


def _retrying(return_as: str, deaths: tuple[type[BaseException], ...]) -> RunTasks:
    """Runs tasks on joblib's backend of the moment; those that a death (one of `deaths`) cut short are run again."""

    def run(function: Callable[[PartTask], PartResult], tasks: Sequence[PartTask]) -> Iterator[PartResult]:
        pending = dict(enumerate(tasks))
        attempts = 0
        while pending:
            calls = [joblib.delayed(_run_numbered)((function, number, task)) for number, task in pending.items()]
            try:
                for number, result in joblib.Parallel(return_as=return_as, batch_size=1)(calls):
                    del pending[number]
                    attempts = 0
                    yield result
            except deaths as exc:
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise ClusterError(
                        f"workers died {attempts} times while no task was done (out of memory? see their logs); "
                        "what is extracted is kept: run again to go on"
                    ) from exc
                _logger.warning("a worker died: %d of %d tasks are done again", len(pending), len(tasks))

    return run


def _run_numbered(call: tuple[Callable[[PartTask], PartResult], int, PartTask]) -> tuple[int, PartResult]:
    """A tuple, which joblib sends with the call: what it would scatter to one dask worker dies with that worker."""
    function, number, task = call
    return number, function(task)


def _import(name: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise InputError(f"--cluster {extra}://: needs packages; run: pip install 'captionmill[{extra}]'") from exc


def _first_words(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
