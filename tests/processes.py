"""Processes of the tests' own that start at once: the server of `fork_server.py` forks each of them.

A process of its own it is, with its own signals and exit code; only the seconds that torch takes to be imported are
spent once for all of them. Nothing computes in the server, so no thread of torch's is lost on the way.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from fork_server import start_server, use_server
from joblib.externals.loky.backend.context import set_start_method

_FORKSERVER = multiprocessing.get_context("forkserver")


class Child:
    """A program in a process of its own; `with` ends it if it has not ended by itself."""

    def __init__(self, program: str, *arguments: object, output: Path | None = None) -> None:
        """Start Python code with `arguments` as sys.argv[1:]; `output` is the file that takes what it prints."""
        start_server()
        self._process = _FORKSERVER.Process(
            target=_run,
            args=(
                program,
                [str(argument) for argument in arguments],
                output,
                dict(os.environ),
                torch.get_num_threads(),
            ),
        )
        self._process.start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.wait()

    def is_running(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid
        os.kill(self._process.pid, number)

    def wait(self) -> int:
        """The exit code; of a process that a signal killed, its number below zero."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def start_command(*arguments: object, output: Path | None = None, before: str = "") -> Child:
    """A `captionmill` command, as `python -m captionmill` runs it, after the code of `before`."""
    program = f"{before}\nfrom captionmill.cli import main; main(prog_name='captionmill')"
    return Child(program, *arguments, output=output)


def share_loaded_modules() -> None:
    """From now on the server forks also the workers of joblib's pools, which would each import torch."""
    use_server()
    set_start_method("forkserver")


def _run(program: str, arguments: list[str], output: Path | None, environment: Mapping[str, str], threads: int) -> None:
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # the server has looked for that of its own environment
    share_loaded_modules()
    # a shell may have told the server to ignore it, and what started the server may have held it back
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(threads)  # the order of sums depends on it
    if output is not None:
        with output.open("wb") as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv[1:] = arguments
    exec(program, {"__name__": "__main__"})
