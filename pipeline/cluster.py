"""Runs tasks in many processes, here or on a cluster, on joblib's backends: shares of an extraction, or a pipeline's.

There is no scheduler of ours. A worker that dies costs its task: what it had stored stays, and the task is done again
elsewhere.
"""

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from typing import Any

import joblib
import torch
from joblib._dask import DaskDistributedBackend
from joblib.externals.loky import get_reusable_executor, process_executor

from captionmill.data.errors import ClusterError, InputError
from captionmill.stages.encoding.spread import RunTasks, Spread

_AS_THEY_COME = "generator_unordered"
_PROCESSES_A_GPU = 4  # threads that decode share one interpreter lock: a process feeds about 1,400 images/s
_CORES_A_PROCESS = 4
_WORTH_STARTING = 10_000  # pictures that one process does while several start
_MOST_GROWTH = 8e9  # bytes
_WORKERS_TIMEOUT_S = 60  # a worker that dask starts again imports torch first
_logger = logging.getLogger(__name__)


@contextmanager
def open_spread(jobs: int, cluster: str | None, *, device: str = "auto", attempts: int = 3) -> Iterator[Spread | None]:
    """Processes to extract with while the block lasts, or None for this process alone.

    `jobs`: processes on this machine, 0 for as many as keep its GPUs busy where many images are to be done, else one.
    `cluster`: dask://HOST:PORT or ray://HOST:PORT; its machines need captionmill and the same paths to images, weights
    and store.

    Raises InputError for another `cluster` or a missing package, ClusterError if the cluster cannot be reached; using
    what it gives raises ClusterError when workers die in so many `attempts` in a row that do no task.
    """
    if cluster is None:
        processes = jobs or _choose_processes(device, cores=joblib.cpu_count())
        if processes < 2:
            yield None
            return
        threads = max(1, joblib.cpu_count() // processes)

        def open_parallel() -> joblib.Parallel:
            return joblib.Parallel(processes, backend="loky", return_as=_AS_THEY_COME, batch_size=1)

        try:
            run = _retrying(open_parallel, (BrokenExecutor,), threads, attempts)
            yield Spread(run, processes, threads, least_images=0 if jobs else _WORTH_STARTING)
        finally:
            get_reusable_executor().shutdown(wait=True)  # they hold a network each
        return
    if jobs:
        raise InputError("--jobs is for this machine: with --cluster, the cluster's workers are the processes")
    kind, _, address = cluster.partition("://")
    connect = {"dask": _connect_dask, "ray": _connect_ray}.get(kind)
    if connect is None or not address:
        raise InputError(f"--cluster {cluster}: use dask://HOST:PORT or ray://HOST:PORT")
    with connect(address, attempts) as spread:
        yield spread


def _choose_processes(device: str, *, cores: int) -> int:
    """Processes that keep the GPUs busy that `device` means on a machine of so many `cores`; 1 for a CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return 1
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 1
    return gpus * max(1, min(_PROCESSES_A_GPU, cores // (gpus * _CORES_A_PROCESS)))


class _DaskBackend(DaskDistributedBackend):
    """joblib's, which waits for ever for a task that dask has given up (joblib 1.6: an error calls no callback)."""

    def submit(self, func: Any, callback: Any = None) -> Any:
        future: Future[Any] = super().submit(func, callback)
        future.add_done_callback(lambda done: callback(done) if done.exception() else None)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        return out.result() if isinstance(out, Future) else super().retrieve_result_callback(out)


@contextmanager
def _connect_dask(address: str, attempts: int) -> Iterator[Spread]:
    distributed = _import("distributed", extra="dask")
    try:
        client = distributed.Client(f"tcp://{address}", set_as_default=False)
    except (OSError, ValueError) as exc:
        raise ClusterError(f"dask://{address}: no dask scheduler answers ({_first_words(exc)})") from exc
    with client:
        if not (workers := client.nthreads()):
            raise ClusterError(f"dask://{address}: the cluster has no workers; start `dask worker tcp://{address}`")

        def open_parallel() -> joblib.Parallel:
            backend = _DaskBackend(client=client, wait_for_workers_timeout=_WORKERS_TIMEOUT_S)
            return joblib.Parallel(backend=backend, return_as=_AS_THEY_COME, batch_size=1)

        threads = min(workers.values())
        run = _retrying(open_parallel, (distributed.scheduler.KilledWorker,), threads, attempts)
        yield Spread(run, len(workers), threads, this_machine=False)


@contextmanager
def _connect_ray(address: str, attempts: int) -> Iterator[Spread]:
    ray = _import("ray", extra="ray")
    try:
        ray.init(address=f"ray://{address}", log_to_driver=False)
    except (OSError, ValueError, ConnectionError) as exc:
        raise ClusterError(f"ray://{address}: no ray cluster answers ({_first_words(exc)})") from exc
    try:
        _import("ray.util.joblib", extra="ray").register_ray()
        processes = max(1, int(ray.cluster_resources().get("CPU", 1)))

        def open_parallel() -> joblib.Parallel:  # this backend knows no generators: rows are stored all the same
            return joblib.Parallel(processes, backend="ray", batch_size=1)

        run = _retrying(open_parallel, (ray.exceptions.RayError,), 1, attempts)
        yield Spread(run, processes, 1, this_machine=False)
    finally:
        ray.shutdown()


def _retrying(
    open_parallel: Callable[[], joblib.Parallel], deaths: tuple[type[BaseException], ...], threads: int, attempts: int
) -> RunTasks:
    """Runs tasks with joblib, each on `threads` threads; those that a death (one of `deaths`) cut short, again.

    ClusterError after so many `attempts` in a row in which a worker dies and no task is done.
    """

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        pending = dict(enumerate(tasks))
        deaths_in_a_row = 0
        while pending:
            # a tuple, which joblib sends with the call: what it would scatter to one dask worker dies with that worker
            calls = [joblib.delayed(_run_numbered)((function, threads, item)) for item in pending.items()]
            try:
                for number, result in open_parallel()(calls):
                    del pending[number]
                    deaths_in_a_row = 0
                    yield result
            except TimeoutError as exc:
                raise ClusterError(
                    f"no worker of the cluster has answered for {_WORKERS_TIMEOUT_S} s; what is done is kept: run "
                    "again to go on"
                ) from exc
            except deaths as exc:
                deaths_in_a_row += 1
                if deaths_in_a_row == attempts:
                    raise ClusterError(
                        f"workers died {attempts} times while no task was done (out of memory? see their logs); "
                        "what is done is kept: run again to go on"
                    ) from exc
                _logger.warning("a worker died: %d of %d tasks are done again", len(pending), len(tasks))

    return run


def _run_numbered(
    call: tuple[Callable[[Any], Any], int, tuple[int, Any]],
) -> tuple[int, Any]:
    function, threads, (number, task) = call
    # a network is no leak: loky would end a process that has grown by 300 MB, and start another, which imports torch
    process_executor._MAX_MEMORY_LEAK_SIZE = _MOST_GROWTH
    torch.set_num_threads(threads)  # dask tells its workers to use one, whatever they were given
    return number, function(task)


def _import(name: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise InputError(f"--cluster {extra}://: needs packages; run: pip install 'captionmill[{extra}]'") from exc


def _first_words(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
