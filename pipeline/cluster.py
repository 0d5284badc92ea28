"""Runs tasks in many processes: joblib's on this machine, dask's or ray's on a cluster.

The tasks are shares of an extraction, or jobs of a pipeline. captionmill has no scheduler. If a worker dies, what it
stored is kept, and its task runs again elsewhere.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

from captionmill.data.errors import ClusterError, InputError, one_line
from captionmill.data.optional import require
from captionmill.stages.encoding.spread import RunTasks, Spread
from captionmill.stages.fields import require_least
from captionmill.stages.machine import choose_workers, end_with_parent, limit_threads, means_cpu

_PROCESSES_PER_GPU = 4  # decoding threads share one interpreter lock: a process decodes about 1,400 images/s
_CORES_PER_PROCESS = 4
_LEAST_IMAGES_TO_SPREAD = 10_000  # images that one process extracts while several start
_MAX_GROWTH = 8e9  # bytes
_ANSWER_S = 5  # a scheduler that is there answers within this time
_PAUSE_S = 0.5  # between two attempts to reach it
_WORKERS_TIMEOUT_S = 60  # a worker that dask restarts imports torch first
_TASKS_AHEAD = 2  # per dask worker, so that no worker is idle; the scheduler holds no more than these
_logger = logging.getLogger(__name__)

_Call = tuple[Callable[[Any], Any], int, tuple[int, Any]]
"""A function, the threads that it may use, and the number and the value of its task."""
_RunCalls = Callable[[Sequence[_Call]], Iterator[tuple[int, Any]]]
"""Runs each call once, in any order and place; the number of each task with its result."""


@contextmanager
def open_spread(
    jobs: int,
    cluster: str | None,
    images: int | None = None,
    *,
    device: str = "auto",
    attempts: int = 3,
    wait_s: float = 0,
) -> Iterator[Spread | None]:
    """Processes to extract with while the block lasts, or None for only this process.

    `jobs`: processes on this machine, 0 for as many as keep its GPUs busy if there are many images to extract, else
    one; `images` is how many there are, if that is known. `cluster`: dask://HOST:PORT or ray://HOST:PORT; its machines
    need captionmill and the same paths to images, weights and store. Its scheduler and its first worker may take
    `wait_s` seconds each to appear.

    Raises InputError for another `cluster` or a missing package, ClusterError if the cluster cannot be reached; running
    tasks raises ClusterError after `attempts` rounds in a row in which workers die and no task is done.
    """
    require_least("jobs", jobs, 0)
    require_least("wait_s", wait_s, 0, whole=False)
    if cluster is None:
        are_few = images is not None and images < _LEAST_IMAGES_TO_SPREAD
        processes = jobs or (1 if are_few else _choose_processes(device))
        if processes < 2:
            yield None
            return
        with _start_processes(processes, attempts, least_images=0 if jobs else _LEAST_IMAGES_TO_SPREAD) as spread:
            yield spread
        return
    refuse_both(jobs, cluster)
    kind, _, address = cluster.partition("://")
    connect = {"dask": _connect_dask, "ray": _connect_ray}.get(kind)
    if connect is None or not address:
        raise InputError(f"`cluster` {cluster}: use dask://HOST:PORT or ray://HOST:PORT")
    with connect(address, attempts, wait_s) as spread:
        yield spread


def refuse_both(jobs: int, cluster: str | None) -> None:
    """Raise InputError if both `jobs` and `cluster` are given."""
    if jobs and cluster is not None:
        raise InputError("`jobs` is for this machine: with `cluster`, the cluster's workers are the processes")


def _choose_processes(device: str) -> int:
    """The number of processes that keep the GPUs of `device` busy on this machine; 1 for a CPU."""
    if means_cpu(device):
        return 1
    import torch

    if not torch.cuda.is_available():
        return 1
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 1
    return gpus * max(1, min(_PROCESSES_PER_GPU, choose_workers(0) // (gpus * _CORES_PER_PROCESS)))


@contextmanager
def _start_processes(processes: int, attempts: int, *, least_images: int) -> Iterator[Spread]:
    """Use `processes` on this machine until the block ends."""
    import joblib
    from joblib.externals.loky import get_reusable_executor  # joblib itself cannot end its processes

    threads = max(1, joblib.cpu_count() // processes)
    first = {"initializer": _begin_process, "initargs": (os.getpid(),)}

    def run_calls(calls: Sequence[_Call]) -> Iterator[tuple[int, Any]]:
        parallel = joblib.Parallel(processes, backend="loky", return_as="generator_unordered", batch_size=1, **first)
        with _ctrl_c_held_back():
            results: Iterator[tuple[int, Any]] = parallel(joblib.delayed(_run_numbered)(call) for call in calls)
        return results

    try:
        run = _retrying(run_calls, (BrokenExecutor,), threads, attempts)
        yield Spread(run, processes, threads, least_images=least_images)
    finally:
        get_reusable_executor().shutdown(wait=True)  # they hold a network each


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the block ends; in processes that are started in it, until a task lets it through.

    A terminal sends it to all its processes. Those that import or wait would end with a traceback each, and what is
    half started could not be ended.
    """
    if not hasattr(signal, "pthread_sigmask") or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # on Windows
        yield
        return
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # once it runs, starting processes no longer lets signals through
    waiting: list[int] = []
    handler = signal.getsignal(signal.SIGINT)  # None: that of a program that Python is a part of
    is_replaced = handler is not None and threading.current_thread() is threading.main_thread()
    if is_replaced:  # other threads of this process let the signal through
        signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if is_replaced:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if waiting:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _connect_dask(address: str, attempts: int, wait_s: float) -> Iterator[Spread]:
    distributed = require("distributed", extra="dask", needed_by="`cluster` dask://")
    dask = require("dask", extra="dask", needed_by="`cluster` dask://")
    usual_s = dask.utils.parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))

    def connect() -> Any:
        return distributed.Client(f"tcp://{address}", set_as_default=False, timeout=min(_ANSWER_S, usual_s))

    try:
        client = _wait(connect, f"dask://{address}: waiting up to {wait_s:g} s for the scheduler", wait_s)
    except (OSError, ValueError) as exc:
        raise ClusterError(f"dask://{address}: no dask scheduler answers ({one_line(exc)})") from exc
    with client:
        if not client.nthreads() and wait_s:
            _logger.warning("dask://%s: waiting up to %g s for workers", address, wait_s)
            with suppress(TimeoutError):
                client.wait_for_workers(1, timeout=wait_s)
        if not (workers := client.nthreads()):
            raise ClusterError(f"dask://{address}: the cluster has no workers; start `dask worker tcp://{address}`")

        def run_calls(calls: Sequence[_Call]) -> Iterator[tuple[int, Any]]:
            client.wait_for_workers(1, timeout=_WORKERS_TIMEOUT_S)
            waiting = (client.submit(_run_numbered, call, pure=False) for call in calls)
            first = islice(waiting, _TASKS_AHEAD * len(workers))
            running = distributed.as_completed(first, loop=client.loop)
            try:
                for future in running:
                    yield future.result()
                    for following in islice(waiting, 1):
                        running.add(following)
            finally:
                running.clear()  # dask drops tasks whose results are not awaited

        run = _retrying(run_calls, (distributed.scheduler.KilledWorker,), min(workers.values()), attempts)
        yield Spread(run, len(workers), min(workers.values()), this_machine=False)


@contextmanager
def _connect_ray(address: str, attempts: int, wait_s: float) -> Iterator[Spread]:
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else ray replaces a lost cluster with one on this machine
    ray = require("ray", extra="ray", needed_by="`cluster` ray://")

    def connect() -> Any:
        logging.getLogger("ray.client_builder").setLevel(logging.WARNING)  # it repeats `log_to_driver`
        return ray.init(address=f"ray://{address}", log_to_driver=False)

    try:
        _wait(connect, f"ray://{address}: waiting up to {wait_s:g} s for the cluster", wait_s)
    except (OSError, ValueError) as exc:
        raise ClusterError(f"ray://{address}: no ray cluster answers ({one_line(exc)})") from exc
    try:
        processes = max(1, int(ray.cluster_resources().get("CPU", 1)))
        run_remotely = ray.remote(max_retries=0)(_run_numbered)  # ray itself would retry for ever if memory runs out

        def run_calls(calls: Sequence[_Call]) -> Iterator[tuple[int, Any]]:
            waiting = (run_remotely.remote(call) for call in calls)
            running: list[Any] = []
            death: Exception | None = None
            try:
                running += islice(waiting, _TASKS_AHEAD * processes)
                while running:
                    (done,), running = ray.wait(running)
                    running += islice(waiting, 1)
                    try:
                        result = ray.get(done)
                    except ray.exceptions.RayTaskError as exc:
                        raise exc.cause from None
                    except ray.exceptions.RayError as exc:
                        death = exc  # the others are finished first; this one runs again in the next round
                    else:
                        yield result
            except (OSError, ray.exceptions.RayError) as exc:
                if ray.is_initialized():
                    raise
                raise ClusterError(
                    f"ray://{address}: the cluster no longer answers; finished work is kept: run again to resume"
                ) from exc
            finally:
                for reference in running if ray.is_initialized() else []:
                    ray.cancel(reference)
            if death is not None:
                raise death

        yield Spread(_retrying(run_calls, (ray.exceptions.RayError,), 1, attempts), processes, 1, this_machine=False)
    finally:
        ray.shutdown()


def _wait(connect: Callable[[], Any], message: str, wait_s: float) -> Any:
    """What `connect` returns once it raises no OSError; after `wait_s` seconds the last of these is raised."""
    end = time.monotonic() + wait_s
    is_told = False
    while True:
        try:
            return connect()
        except OSError:
            if time.monotonic() >= end:
                raise
        if not is_told:
            _logger.warning("%s", message)
            is_told = True
        time.sleep(_PAUSE_S)


def _retrying(run_calls: _RunCalls, deaths: tuple[type[BaseException], ...], threads: int, attempts: int) -> RunTasks:
    """Runs tasks by `run_calls`, each on `threads` threads; tasks that one of `deaths` interrupts run again.

    Raises ClusterError after `attempts` rounds in a row in which a worker dies and no task is done.
    """

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        pending = dict(enumerate(tasks))
        deaths_in_a_row = 0
        while pending:
            try:
                for number, result in run_calls([(function, threads, item) for item in pending.items()]):
                    del pending[number]
                    deaths_in_a_row = 0
                    yield result
            except TimeoutError as exc:
                raise ClusterError(
                    f"no worker of the cluster has answered for {_WORKERS_TIMEOUT_S} s; finished work is kept: run "
                    "again to resume"
                ) from exc
            except deaths as exc:
                deaths_in_a_row += 1
                if deaths_in_a_row == attempts:
                    raise ClusterError(
                        f"workers died {attempts} times while no task was done (out of memory? see their logs); "
                        "finished work is kept: run again to resume"
                    ) from exc
                _logger.warning("a worker died: %d of %d tasks run again", len(pending), len(tasks))

    return run


def _run_numbered(call: _Call) -> tuple[int, Any]:
    function, threads, (number, task) = call
    limit_threads(threads)  # dask makes its workers use one, even if they have more
    return number, function(task)


def _begin_process(parent: int) -> None:
    from joblib.externals.loky import process_executor

    # a network is not a leak: loky would restart a process that has grown by 300 MB, which imports torch again
    process_executor._MAX_MEMORY_LEAK_SIZE = _MAX_GROWTH
    end_with_parent(parent)
