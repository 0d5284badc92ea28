"""On a terminal one line that fits it, redrawn; in a log plain lines; and nothing of it among the results."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import click
import pytest

from captionmill.pipeline.terminal.progress import EchoHandler, Intervals, ProgressBars

termios = pytest.importorskip("termios", reason="this system has no pseudo-terminals")
Screen = Callable[[], list[str]]
AT_ONCE = Intervals(drawings_s=0, lines_s=0, objects_s=0)
NOTE = "loss 3.01, CIDEr-D 0.382, 1,900 captions/s"


def show_on_screen(written: str) -> list[str]:
    """The lines as a terminal shows them once all is written."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown = ""
        for piece in line.split("\r"):
            shown = piece + shown[len(piece) :]
        lines.append(shown.rstrip())
    return lines


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Screen]]:
    """Makes stderr a terminal of so many columns; what it gives back reads the screen."""
    import pty

    opened = ExitStack()

    def open_terminal(columns: int) -> Screen:
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        reader = opened.enter_context(os.fdopen(master, encoding="utf-8", newline=""))
        stderr = opened.enter_context(os.fdopen(slave, "w", encoding="utf-8"))  # closed first
        monkeypatch.setattr(sys, "stderr", stderr)

        def read_screen() -> list[str]:
            stderr.write("\x04")  # what has been written ends here
            stderr.flush()
            written = ""
            while not written.endswith("\x04"):
                written += reader.read(1)
            return show_on_screen(written[:-1])

        return read_screen

    with opened:
        yield open_terminal


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (120, f"epoch 3 of 30  [########################------------]   67%  {NOTE}, 5 min left"),
        (90, f"epoch 3 of 30  [######----]   67%  {NOTE}, 5 min left"),
        (80, f"epoch 3 of 30   67%  {NOTE}, 5 min left"),
        (60, "epoch 3 of 30   67%  loss 3.01, CIDEr-D 0.382, 5 min left"),
        (30, "epoch 3 of 30   67%  5 min left"[:29]),
        (20, "epoch 3 of 30   67%"),
    ],
)
def test_an_epochs_line_fits_the_terminal(columns: int, line: str, terminal: Callable[[int], Screen]) -> None:
    screen = terminal(columns)
    with ProgressBars(quiet=False, intervals=AT_ONCE) as progress:
        progress("epoch 3 of 30", 10_000, 30_000, note="loss 3.2", left_s=400)
        progress("epoch 3 of 30", 20_100, 30_000, note=NOTE, left_s=299.6)
        assert screen() == [line]


def test_an_epochs_line_makes_way_for_its_result(terminal: Callable[[int], Screen]) -> None:
    screen = terminal(120)
    with ProgressBars(quiet=False, intervals=AT_ONCE) as progress:
        for epoch in (1, 2):
            for done in (0, 1, 2):
                progress(f"epoch {epoch} of 2", done, 2, note=NOTE, left_s=60)
            progress.clear()
            click.echo(f"epoch {epoch}: best so far", err=True)
        progress("caption", 1, 2, note=NOTE)
    assert screen() == ["epoch 1: best so far", "epoch 2: best so far", ""]


def test_a_line_without_notes_stays_when_its_work_is_done(terminal: Callable[[int], Screen]) -> None:
    screen = terminal(60)
    with ProgressBars(quiet=False, intervals=AT_ONCE) as progress:
        for done in (0, 5_000, 10_000):
            progress("extract", done, 10_000)
        progress("export", 0, 0)
    assert screen() == [
        "extract  [###############]  100%  10,000 of 10,000",
        "export  [###################################]  100%  0 of 0",
        "",
    ]


def test_a_warning_has_a_line_of_its_own(terminal: Callable[[int], Screen], monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("captionmill")
    monkeypatch.setattr(logger, "handlers", [EchoHandler()])
    screen = terminal(60)
    with ProgressBars(quiet=False, intervals=AT_ONCE) as progress:
        progress("extract", 0, 9)
        logger.warning("a smaller batch")
        progress("extract", 9, 9)
    assert screen() == ["Warning: a smaller batch", "extract  [##################################]  100%  9 of 9", ""]


def test_an_interrupted_epochs_line_stays(terminal: Callable[[int], Screen]) -> None:
    screen = terminal(80)
    progress = ProgressBars(quiet=False, intervals=AT_ONCE)
    progress("epoch 3 of 30", 15_000, 30_000, note="loss 3.01")
    progress.__exit__(KeyboardInterrupt, None, None)
    assert screen() == ["epoch 3 of 30  [##################------------------]   50%  loss 3.01", ""]


def test_a_log_has_plain_lines_with_the_note(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars(quiet=False, intervals=AT_ONCE) as progress:
        progress("epoch 3 of 30", 15_000, 30_000, note=NOTE, left_s=7500)
        progress("extract", 32, 8_091)
    assert capsys.readouterr().err == (
        f"epoch 3 of 30: 15,000 of 30,000, {NOTE}, 2 h 5 min left\nextract: 32 of 8,091\n"
    )


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars(quiet=True, intervals=AT_ONCE) as progress:
        progress("extract", 32, 8_091)
    assert capsys.readouterr().err == ""
