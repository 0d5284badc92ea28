"""Commands as processes that a fork server starts at once, and that can be killed at any moment.

The server has imported captionmill and torch, so a command costs tenths of a second instead of seconds.
"""

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Sequence
from ctypes import c_double
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from joblib.externals.loky import get_reusable_executor

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("matplotlib.backends.backend_agg", "onnx", "onnxruntime", "onnxscript", "pyarrow.parquet", "torch._dynamo"),
        *("torch.onnx", "torchvision", "captionmill.cli"),
        *(f"captionmill.pipeline.{name}" for name in ("captioning.folder", "demo.demo", "explain", "export", "search")),
        *(
            f"captionmill.pipeline.{name}"
            for name in ("pages.gallery", "pages.run_report", "plan.run", "review.server")
        ),
        *("captionmill.stages.scoring.evaluate", "captionmill.stages.training.train"),
    ]
)
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
"""Events of Python's auditing that change a folder; so does an `open` for writing."""
DECISIONS_NAME = "decisions.csv"


@dataclass(frozen=True)
class Ending:
    """How a life ended."""

    code: int
    """Exit code; of a process that a signal killed, its number below zero."""
    seconds: float
    cpu_seconds: float
    """0 for a life that was killed."""
    changes: int
    """How often it was about to change a folder: to open a file for writing, to rename or to remove one."""
    output: str

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


def live(
    words: Sequence[str],
    folder: Path,
    *,
    seconds: float | None = None,
    changes: int | None = None,
    number: signal.Signals = signal.SIGKILL,
    most_s: float = 600,
) -> Ending:
    """Run `captionmill WORDS` in `folder`, and kill it after `seconds`, or when it is about to make change `changes`.

    Another signal of this `number` may be sent after `seconds`. Raises TimeoutError, after a kill, if it has not ended
    by itself in `most_s` seconds.
    """
    log = Path(tempfile.gettempdir(), f"captionmill-{os.getpid()}.output")  # not where a disk may be full
    counted = _CONTEXT.Array(c_double, 2, lock=False)
    process = _CONTEXT.Process(target=_run, args=(list(words), folder, log, dict(os.environ), changes or 0, counted))
    started = time.monotonic()
    process.start()
    process.join(most_s if seconds is None else seconds)
    assert process.pid is not None
    if process.exitcode is None and seconds is not None:
        os.kill(process.pid, number)
        process.join(most_s)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        raise TimeoutError(f"{' '.join(words)} has not ended in {most_s:.0f} s")
    assert process.exitcode is not None
    text = log.read_text(errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    return Ending(process.exitcode, time.monotonic() - started, counted[1], int(counted[0]), text)


def draw_moment(draw: random.Random, whole: Ending) -> dict[str, Any]:
    """When to kill a life that is like `whole`: half of the moments are drawn from its time, half from its changes."""
    if draw.random() < 0.5 and whole.changes:
        return {"changes": draw.randint(1, whole.changes)}
    return {"seconds": draw.uniform(0, 1.1 * whole.seconds)}


def _run(words: Sequence[str], folder: Path, log: Path, environment: dict[str, str], last: int, counted: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # nothing has begun
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with log.open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    import torch

    from captionmill.cli import main
    from captionmill.pipeline.demo import demo

    torch.set_num_threads(1)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            counted[0] += 1
            if counted[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    short_demo = partial(demo.run_demo, image_count=30, held_out_count=4)
    try:
        with patch.object(webbrowser, "open", _review), patch.object(demo, "run_demo", short_demo):
            main(words, prog_name="captionmill")
    except KeyboardInterrupt:  # when the command had just ended, as in `__main__`
        sys.exit(128 + signal.SIGINT)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it is over, also for a signal that is repeated
        counted[1] = time.process_time()
        get_reusable_executor().shutdown(kill_workers=True)  # joblib's idle workers would be waited for, for minutes


def _review(address: str) -> None:
    """What a person does in the browser that `review` opens: saves the decisions of a file, and ends the command."""
    place = urlsplit(address)
    connection = HTTPConnection(place.netloc)
    headers = {"Content-Type": "text/csv", "Origin": f"http://{place.netloc}"}
    try:
        connection.request("POST", f"{place.path}decisions", Path(DECISIONS_NAME).read_bytes(), headers)
        answer = connection.getresponse()
        print(answer.status, answer.read().decode(), flush=True)
    except ConnectionError:
        print("a signal has ended it before", flush=True)
    finally:  # without an answer too: nobody else would end it
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
