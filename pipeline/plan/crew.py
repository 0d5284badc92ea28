"""Who does the jobs of a pipeline: this process, or several side by side, here or on a cluster, on joblib's backends.

A process aside is told to stop by a file, on storage that all share: a signal reaches no other machine.
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
from captionmill.pipeline.plan.graph import Task
from captionmill.pipeline.plan.jobs import CaptionJob, EvaluateJob, ExtractJob, Job, TrainJob
from captionmill.pipeline.plan.work import Listeners, Summary, describe, do_job
from captionmill.stages.encoding.share import claim_device
from captionmill.stages.encoding.spread import Spread

_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class JobCall:
    """What a process is to do; it can be done twice without harm."""

    task: Task
    replaces: bool
    """Whether the output may take the place of one that was made from something else."""


@dataclass(frozen=True)
class JobResult:
    """How it went."""

    task: Task
    summary: Summary | None = None
    """None if it failed or was stopped, with the reason in `error`."""
    text: str = ""
    """What it did, in words."""
    error: str = ""
    """Why it failed, in one line."""
    warnings: tuple[str, ...] = ()
    """What it told while it ran aside."""
    duration_s: float = 0.0


class Crew:
    """Processes, one or several: what runs in them now, and what has ended."""

    def __init__(self, spread: Spread | None, stop_path: Path, listeners: Listeners) -> None:
        """Use `open_crew`."""
        self.running = 0
        """Jobs that run aside."""
        self._spread, self._stop_path, self._listeners = spread, stop_path, listeners
        self._ended: queue.SimpleQueue[JobResult | _Broken] = queue.SimpleQueue()

    def choose_aside(self, tasks: Sequence[Task]) -> list[Task]:
        """Which of the `tasks` that can be done now are done aside.

        No extraction is: it is spread over the processes by itself. Nor is a task that has this machine for itself.
        """
        if self._spread is None or (len(tasks) == 1 and not self.running and self._spread.this_machine):
            return []
        return [task for task in tasks if task.kind != "extract"]

    def do_here(self, call: JobCall) -> JobResult:
        """Do a job in this process, an extraction with all processes."""
        job = call.task.job
        with ExitStack() as stack:
            spread = self._spread
            if isinstance(job, ExtractJob) and spread is None:  # several a GPU, as `extract` does
                spread = stack.enter_context(open_spread(0, None, device=job.config.device))
            return _attempt(call, job, self._listeners, spread)

    def start(self, calls: Sequence[JobCall]) -> None:
        """Begin with jobs aside."""
        assert self._spread is not None, "choose_aside chooses none"
        workers = self._spread.workers
        numbered = [_AsideCall(call, workers, self._stop_path) for call in calls]
        self.running += len(calls)
        # a thread a batch: joblib waits for its results
        threading.Thread(target=self._run, args=(self._spread, numbered), daemon=True, name="jobs aside").start()

    def ended(self, *, wait: bool) -> Iterator[JobResult]:
        """The jobs aside that have ended since the last call; `wait` for one if there is none yet.

        Raises ClusterError if processes keep dying, and what a job raises that no user can cause.
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

    def stop(self) -> Iterator[JobResult]:
        """Tell all aside to stop where nothing is lost, and wait until they have."""
        if self.running:
            self._stop_path.touch()
        while self.running:
            with suppress(Exception):  # there is an error already, or Ctrl-C
                yield from self.ended(wait=True)
        self._stop_path.unlink(missing_ok=True)

    def _run(self, spread: Spread, calls: "list[_AsideCall]") -> None:
        left = len(calls)
        try:
            for result in spread.run(run_aside, calls):
                left -= 1
                self._ended.put(result)
        except BaseException as exc:
            self._ended.put(_Broken(exc, left))


@contextmanager
def open_crew(jobs: int, cluster: str | None, stop_path: Path, listeners: Listeners) -> Iterator[Crew]:
    """`jobs` processes, 1 for this one alone, or those of a `cluster`, as for `open_spread`, while the block lasts.

    `stop_path` is the file that tells processes aside to stop; `listeners` hear of jobs in this process.
    """
    stop_path.unlink(missing_ok=True)
    if jobs == 1 and cluster is None:
        yield Crew(None, stop_path, listeners)
        return
    with open_spread(jobs, cluster) as spread:
        yield Crew(spread, stop_path, listeners)


@dataclass(frozen=True)
class _Broken:
    """A bug in a job, or processes that keep dying."""

    error: BaseException
    lost: int
    """Jobs of the batch that will not end."""


@dataclass(frozen=True)
class _AsideCall:
    call: JobCall
    workers: int
    """Decoding threads where the job leaves them to the machine."""
    stop_path: Path


def run_aside(aside: _AsideCall) -> JobResult:
    """Do a job in this process, which somebody else started for that; it stops when the file says so."""
    with _warnings_kept() as warnings, _deaf_to_ctrl_c():
        try:
            stop = _StopLook(aside.stop_path)
            stop.look()
            result = _attempt(aside.call, _fitted(aside.call.task.job, aside.workers), Listeners(progress=stop), None)
        except _Stopped:
            result = JobResult(aside.call.task, error="stopped")
    return replace(result, warnings=tuple(warnings))


def error_line(error: CaptionmillError | OSError) -> str:
    """What the command line would say."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(getattr(error, "strerror", None) or error)


def _attempt(call: JobCall, job: Job, listeners: Listeners, spread: Spread | None) -> JobResult:
    started = time.monotonic()
    try:
        summary = do_job(job, replaces=call.replaces, spread=spread, listeners=listeners)
    except (CaptionmillError, OSError) as exc:
        return JobResult(call.task, error=error_line(exc))
    return JobResult(call.task, summary, describe(summary), duration_s=time.monotonic() - started)


class _Stopped(KeyboardInterrupt):
    """The stages take it as Ctrl-C: everything is written down first."""


class _StopLook:
    """A stage's progress: whenever it tells any, the file is looked for that says to stop."""

    def __init__(self, path: Path) -> None:
        self._path, self._looked = path, time.monotonic()

    def __call__(self, *_: object, **__: object) -> None:
        if time.monotonic() - self._looked > _SECONDS_BETWEEN_LOOKS:
            self.look()

    def look(self) -> None:
        self._looked = time.monotonic()
        if self._path.exists():
            raise _Stopped


class _Keeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _warnings_kept() -> Iterator[list[str]]:
    """Warnings, which would come up unlabelled among those of other jobs, go into the list."""
    keeper, logger = _Keeper(), logging.getLogger("captionmill")
    logger.addHandler(keeper)
    try:
        yield keeper.lines
    finally:
        logger.removeHandler(keeper)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Leave a terminal's Ctrl-C, which all its processes hear, to the one that started them."""
    if threading.current_thread() is not threading.main_thread():  # a dask worker's
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _fitted(job: Job, workers: int) -> Job:
    """The job on the share of the machine that this process has."""
    match job:
        case TrainJob():
            return replace(job, config=replace(job.config, device=claim_device(job.config.device)))
        case EvaluateJob():
            return replace(job, device=claim_device(job.device))
        case CaptionJob():
            device, threads = claim_device(job.machine.device), job.machine.workers or workers
            return replace(job, machine=replace(job.machine, workers=threads, device=device))
    return job
