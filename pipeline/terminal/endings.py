"""How commands end early: errors in one line; Ctrl-C and SIGTERM after everything is flushed."""

import _thread
import logging
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from captionmill.data import regular
from captionmill.data.errors import CaptionmillError
from captionmill.pipeline.terminal.json_lines import begin_json, json_errors, streams_put_back, wants_json
from captionmill.pipeline.terminal.names import as_typed
from captionmill.pipeline.terminal.printable import printable_terminals
from captionmill.pipeline.words import show_error

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


class _Terminated(KeyboardInterrupt):
    """SIGTERM, sent by a batch system or a shutdown; everything is flushed as for Ctrl-C."""


_IMPORT = "<frozen importlib._bootstrap>"
_TAKING: dict[str, str | tuple[str, ...]] = {
    logging.__file__: "",
    threading.__file__: "__",
    regular.__file__: ("_open", "_checked"),
    str(Path(regular.__file__).with_name("files.py")): ("_create", "flush"),
}
"""Python code that takes locks and opens files: files, and what the names of their functions begin with."""
_PAUSE_S, _MOST_WAITS = 0.05, 200
_waited: list[int] = []
"""The signals of this command that waited."""
_raised: list[type[KeyboardInterrupt]] = []
"""What the signals of this command raised."""
_ONE_S = 1.0
_raised_at: list[tuple[int, float]] = []
"""The signal and when (`time.monotonic`). Within _ONE_S the same is one: a person presses Ctrl-C again and again."""


def _end(number: int, frame: FrameType | None) -> None:
    """Raise the exception of a signal, unless it arrives where it would do harm: then it waits for a moment.

    An import swallows it. In a function that has just taken a lock, the lock would be kept for ever: other threads
    wait for it, and this one for them. What such a function has just opened would stay open. The same signal that
    follows at once is ignored: it would end what the first one's exception saves and stops on its way.
    """
    if _raised_at and _raised_at[-1][0] == number and time.monotonic() - _raised_at[-1][1] < _ONE_S:
        return
    if len(_waited) < _MOST_WAITS and (_takes_hold(frame) or _is_import(frame)):
        _waited.append(number)
        _thread.start_new_thread(_repeat_signal, (signal.Signals(number), _PAUSE_S))
        return
    _raised.append(_Terminated if number == signal.SIGTERM else KeyboardInterrupt)
    _raised_at.append((number, time.monotonic()))
    raise _raised[-1]


def _takes_hold(frame: FrameType | None) -> bool:
    beginning = _TAKING.get(frame.f_code.co_filename) if frame else None
    return frame is not None and beginning is not None and frame.f_code.co_name.startswith(beginning)


def _is_import(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != _IMPORT:
        frame = frame.f_back
    return frame is not None


class _SignalRepeater:
    """Repeats signals that the interpreter swallows: those that arrive in a destructor or a weak reference's callback.

    The exception of such a signal is lost; without this class, Ctrl-C had no effect in three of a hundred extractions.
    """

    def __init__(self, otherwise: Callable[["UnraisableHookArgs"], object], pause_s: float) -> None:
        self._otherwise, self._pause_s = otherwise, pause_s

    def __call__(self, unraisable: "UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            number = signal.SIGTERM if isinstance(unraisable.exc_value, _Terminated) else signal.SIGINT
            seconds = self._pause_s
            _raised_at.clear()
            while True:
                try:
                    _thread.start_new_thread(_repeat_signal, (number, seconds))
                    return
                except KeyboardInterrupt:  # on a busy machine it arrives in this function, where it is lost too
                    seconds = 2 * seconds + 0.01
        else:
            self._otherwise(unraisable)


def _repeat_signal(number: signal.Signals, seconds: float) -> None:
    time.sleep(seconds)
    _thread.interrupt_main(number)


def listen_to_signals(*, pause_s: float = 0.01) -> None:
    """From now on SIGTERM and Ctrl-C end a command where nothing is lost, whenever they arrive.

    One that the interpreter swallows is raised again `pause_s` seconds later.
    """
    _waited.clear()
    _raised.clear()
    _raised_at.clear()
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for a job in the background
        signal.signal(signal.SIGINT, _end)
    if not isinstance(sys.unraisablehook, _SignalRepeater):
        sys.unraisablehook = _SignalRepeater(sys.unraisablehook, pause_s)


@contextmanager
def _errors_as_objects() -> Iterator[None]:
    """Write errors as JSON objects if stderr holds JSON; else click shows them."""
    try:
        yield
    except click.ClickException as exc:
        if (stream := json_errors()) is None:
            raise
        stream.log("error", "error", exc.format_message())
        raise click.exceptions.Exit(exc.exit_code) from exc


REMOVING = frozenset({"--in-place", "--overwrite", "--prune", "--redo-corrected", "--restart"})
"""Options that remove or replace what is there: whoever mistypes another option is not offered one of them."""


class StrictGroup(click.Group):
    """Refuses an option that is given twice to one of its commands: the first value would be dropped without a word.

    For an unknown option it suggests none that removes something.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, others = super().resolve_command(ctx, args)
        if command and not isinstance(command, click.Group) and not ctx.resilient_parsing:  # as completion does
            try:
                refuse_repeated(command, click.Context(command, ctx, name), others)
            except click.NoSuchOption as exc:
                offered = [option for option in exc.possibilities or () if option not in REMOVING]
                raise click.NoSuchOption(exc.option_name, exc.message, offered, exc.ctx) from exc
        return name, command, others


def refuse_repeated(command: click.Command, context: click.Context, arguments: Sequence[str]) -> None:
    """Raise UsageError if an option of `command` that takes one value is given twice in `arguments`."""
    _, _, order = command.make_parser(context).parse_args([*arguments])
    for parameter, count in Counter(order).items():
        if count > 1 and isinstance(parameter, click.Option) and not parameter.multiple and not parameter.count:
            names = " or ".join([*parameter.opts, *parameter.secondary_opts])
            raise click.UsageError(f"{names} is given {count} times; give it once", context)


class ErrorGroup(StrictGroup):
    """Shows errors that a user can fix as one line (or JSON object) on stderr, exit code 1; a bug keeps its traceback.

    Its help lists the commands in the order in which they were added.
    """

    def list_commands(self, _: click.Context) -> list[str]:
        return [*self.commands]

    def main(self, args: Sequence[str] | None = None, *others: Any, **settings: Any) -> Any:
        with printable_terminals(), streams_put_back():
            if wants_json(sys.argv[1:] if args is None else args):  # before click reports errors
                begin_json()
            return super().main(args, *others, **settings)

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        with _errors_as_objects():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_as_objects():
            return self._invoke(ctx)

    def _invoke_or_stop(self, ctx: click.Context) -> Any:
        """As `click.Group.invoke`; an error that a signal became on its way, as in torch's reader, is that signal."""
        try:
            return super().invoke(ctx)
        except (CaptionmillError, OSError) as exc:
            if _raised:
                raise _raised[-1] from exc
            raise

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke_or_stop(ctx)
        except KeyboardInterrupt as exc:
            click.echo(
                "\nStopped. Features, captions and checkpoints made so far are kept: run the same command again to "
                "resume. A finished output is unchanged.",
                err=True,
            )
            ctx.exit(128 + (signal.SIGTERM if isinstance(exc, _Terminated) else signal.SIGINT))
        except BrokenPipeError:  # click ends the command in silence
            raise
        except (CaptionmillError, OSError) as exc:
            command = self.commands.get(ctx.invoked_subcommand or "")
            raise click.ClickException(as_typed(show_error(exc), command)) from exc
