"""The `captionmill` command, also as `python -m captionmill`.

Ctrl-C ends it without a word while it is imported and while Python ends, when there is nothing to say; in between, the
command says what is kept. Then the process ends by the signal, so that the loop of a shell ends too.
"""

import atexit
import contextlib
import os
import signal
import sys
import time


def main() -> None:
    """Run the command of the command line."""
    _end_in_silence()
    interrupted: list[bool] = []
    atexit.register(_end_by_signal, interrupted)  # the first that is registered is the last that runs
    from captionmill.cli import main as run_command

    try:
        run_command()
    except SystemExit as exc:
        interrupted += [True] if exc.code == 128 + signal.SIGINT else []
        raise
    except KeyboardInterrupt as exc:  # when the command had just ended
        number = signal.SIGINT if type(exc) is KeyboardInterrupt else signal.SIGTERM
        interrupted += [True] if number == signal.SIGINT else []
        raise SystemExit(128 + number) from None
    finally:
        _end_in_silence(at_once=not interrupted)


def _end_by_signal(interrupted: list[bool]) -> None:
    """End the process by SIGINT if there is anything in `interrupted`: after any other end, bash continues its loop."""
    if interrupted and os.name != "nt":
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                stream.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _end_in_silence(*, at_once: bool = True) -> None:
    """Let signals end the process; if not `at_once`, Ctrl-C in a second: Python has other processes to stop."""
    began = time.monotonic()

    def end(number: int, _: object) -> None:
        if time.monotonic() - began > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL if at_once else end)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    main()
