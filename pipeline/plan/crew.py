"""Runs the jobs of a pipeline: in this process, or in several in parallel, here or on a cluster, by joblib's backends.

Worker processes stop when a file appears on storage that all share: a signal does not reach another machine.
"""

import logging
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from captionmill.data.errors import CaptionmillError
from captionmill.pipeline.cluster import open_spread
from captionmill.pipeline.plan.graph import Task, TaskOutcome
from captionmill.pipeline.plan.jobs import CaptionJob, EvaluateJob, ExtractJob, Job, TrainJob
from captionmill.pipeline.plan.work import Listeners, describe, do_job
from captionmill.pipeline.words import show_error
from captionmill.stages.encoding.share import claim_device
from captionmill.stages.encoding.spread import Spread
from captionmill.stages.machine import share_memory

_SECONDS_BETWEEN_CHECKS = 0.2


@dataclass(frozen=True)
class JobCall:
    """One job for a process; running it twice does no harm."""

    task: Task
    replaces: bool
    """Whether the output may replace one that was made from something else."""


class Crew:
    """One or several processes, the jobs that run in them and those that have ended."""

    def __init__(self, spread: Spread | None, stop_path: Path, listeners: Listeners) -> None:
        """Use `open_crew`."""
        self.running = 0
        """The number of jobs that run in worker processes."""
        self._spread, self._stop_path, self._listeners = spread, stop_path, listeners
        self._ended: queue.SimpleQueue[TaskOutcome | _Broken] = queue.SimpleQueue()

    def choose_for_workers(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of the `tasks` that can run now that should run in worker processes.

        Extractions never do, as each one spreads over all processes. Nor does a task that has this machine to itself.
        """
        if self._spread is None or (len(tasks) == 1 and not self.running and self._spread.this_machine):
            return []
        return [task for task in tasks if task.kind != "extract"]

    def do_here(self, call: JobCall) -> TaskOutcome:
        """Do a job in this process, an extraction with all processes."""
        job = call.task.job
        with ExitStack() as stack:
            spread = self._spread
            if isinstance(job, ExtractJob) and spread is None:  # several processes per GPU, as in `extract`
                spread = stack.enter_context(open_spread(0, None, device=job.config.device))
            return _attempt(call, job, self._listeners, spread)

    def start(self, calls: Sequence[JobCall]) -> None:
        """Start jobs in worker processes."""
        assert self._spread is not None, "choose_for_workers chooses none"
        spread = self._spread
        processes = spread.processes if spread.this_machine else 1
        numbered = [_WorkerCall(call, spread.workers, processes, self._stop_path) for call in calls]
        self.running += len(calls)
        # one thread per batch, as joblib waits for its results
        threading.Thread(target=self._run, args=(spread, numbered), daemon=True, name="jobs in workers").start()

    def ended(self, *, wait: bool) -> Iterator[TaskOutcome]:
        """The jobs in worker processes that have ended since the last call; `wait` for one if there is none yet.

        Raises ClusterError if processes keep dying, and any bug that a job raised.
        """
        while self.running:
            try:
                result = self._ended.get(block=wait)
            except queue.Empty:
                return
            if isinstance(result, _Broken):
                self.running -= result.lost
                raise result.error
            wait = False
            self.running -= 1
            yield result

    def stop(self) -> Iterator[TaskOutcome]:
        """Stop all worker processes where nothing is lost, and wait until they have stopped."""
        if self.running:
            self._stop_path.touch()
        while self.running:
            with suppress(Exception):  # there is an error or Ctrl-C already
                yield from self.ended(wait=True)
        self._stop_path.unlink(missing_ok=True)

    def _run(self, spread: Spread, calls: "list[_WorkerCall]") -> None:
        left = len(calls)
        try:
            for result in spread.run(run_in_worker, calls):
                left -= 1
                self._ended.put(result)
        except BaseException as exc:
            self._ended.put(_Broken(exc, left))


@contextmanager
def open_crew(
    jobs: int, cluster: str | None, stop_path: Path, listeners: Listeners, *, wait_s: float = 0
) -> Iterator[Crew]:
    """`jobs` processes, 1 for only this one, or those of a `cluster`, as for `open_spread`, while the block lasts.

    Worker processes stop when the file `stop_path` appears; `listeners` are called for jobs in this process.
    """
    stop_path.unlink(missing_ok=True)
    if jobs == 1 and cluster is None:
        yield Crew(None, stop_path, listeners)
        return
    with open_spread(jobs, cluster, wait_s=wait_s) as spread:
        yield Crew(spread, stop_path, listeners)


@dataclass(frozen=True)
class _Broken:
    """A bug in a job, or processes that keep dying."""

    error: BaseException
    lost: int
    """Jobs of the batch that will not end."""


@dataclass(frozen=True)
class _WorkerCall:
    call: JobCall
    workers: int
    """Decoding threads, if the job does not set them."""
    processes: int
    """How many share the memory of this machine."""
    stop_path: Path


def run_in_worker(worker_call: _WorkerCall) -> TaskOutcome:
    """Run a job in this worker process; it stops when the stop file appears."""
    with _collect_warnings() as warnings, _ignore_ctrl_c():
        try:
            stop = _StopCheck(worker_call.stop_path)
            stop.check()
            outcome = _attempt(worker_call.call, _fitted(worker_call), Listeners(progress=stop), None)
        except _Stopped:
            outcome = TaskOutcome.failed(worker_call.call.task, "stopped")
    return replace(outcome, warnings=tuple(warnings))


def _attempt(call: JobCall, job: Job, listeners: Listeners, spread: Spread | None) -> TaskOutcome:
    started = time.monotonic()
    try:
        summary = do_job(job, replaces=call.replaces, spread=spread, listeners=listeners)
    except (CaptionmillError, OSError) as exc:
        return TaskOutcome.failed(call.task, show_error(exc))
    return TaskOutcome(call.task, describe(summary), summary, duration_s=time.monotonic() - started)


class _Stopped(KeyboardInterrupt):
    """Stages handle it as Ctrl-C: everything is saved first."""


class _StopCheck:
    """A stage's progress callback, which checks now and then whether the stop file exists."""

    def __init__(self, path: Path) -> None:
        self._path, self._checked_at = path, time.monotonic()

    def __call__(self, *_: object, **__: object) -> None:
        if time.monotonic() - self._checked_at > _SECONDS_BETWEEN_CHECKS:
            self.check()

    def check(self) -> None:
        self._checked_at = time.monotonic()
        if self._path.exists():
            raise _Stopped


class _WarningList(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """Collect warnings in the list; printed directly, they would mix with those of other jobs."""
    handler, logger = _WarningList(), logging.getLogger("captionmill")
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)


@contextmanager
def _ignore_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C, which a terminal sends to all its processes: the process that started them handles it."""
    if threading.current_thread() is not threading.main_thread():  # a dask worker's
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _fitted(worker_call: _WorkerCall) -> Job:
    """The job with the devices, threads and memory that this process may use."""
    job = worker_call.call.task.job
    match job:
        case TrainJob():
            return replace(job, config=replace(job.config, device=claim_device(job.config.device)))
        case EvaluateJob():
            return replace(job, device=claim_device(job.device))
        case CaptionJob():
            device, threads = claim_device(job.machine.device), job.machine.workers or worker_call.workers
            memory = share_memory(job.machine.memory, worker_call.processes)
            return replace(job, machine=replace(job.machine, workers=threads, memory=memory, device=device))
    return job
