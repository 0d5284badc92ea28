"""What a terminal, a log and a signal get, whatever files are called and libraries print."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from captionmill.pipeline.terminal.printable import PrintableStream, printable

HOSTILE = "\x1b]0;owned\x07\x9b2J\u202egpj.exe"


def test_a_terminal_gets_no_control_characters_but_those_that_redraw_a_line() -> None:
    terminal = io.StringIO()
    stream = PrintableStream(terminal)
    stream.write(f"Error: {HOSTILE}\tno image\n")
    stream.write("\rextract 10%")
    stream.write("\r           \r")
    stream.write("a\rb")
    assert terminal.getvalue() == (
        "Error: \\x1b]0;owned\\x07\\x9b2J\\u202egpj.exe\tno image\n\rextract 10%\r           \ra\\x0db"
    )
    assert printable("déjà vu 🚀\n") == "déjà vu 🚀\n"


def test_what_a_library_writes_to_stderr_itself_is_an_object_too() -> None:
    program = (
        "import os, sys; from captionmill.pipeline.terminal.json_lines import begin_json, streams_put_back\n"
        "with streams_put_back():\n"
        "    begin_json()\n"
        "    os.write(2, b'TIFFReadDirectory: \\x9b2J\\xff bad\\nsecond, without an end')\n"
        "    print('ours', file=sys.stderr)\n"
        'os.write(2, b\'{"message": "plain"}\\n\')\n'
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    lines = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert sorted(lines) == ["TIFFReadDirectory: \\x9b2J\\xff bad", "ours", "plain", "second, without an end"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_program_is_still_imported_ends_it_without_a_traceback(number: int, code: int) -> None:
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import captionmill.pipeline.terminal, os\n"
        f"os.kill(os.getpid(), {int(number)})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_signal_in_an_import_waits_for_its_end(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, types, time\n"
        "from captionmill.pipeline.terminal import endings\n"
        "endings.listen_to_signals()\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "try:\n"
        "    import slow\n"
        "    print('imported', slow.done)\n"
        "    for _ in range(500): time.sleep(0.01)\n"  # what a thread interrupts is not one long call
        "except KeyboardInterrupt as exc:\n"
        "    print(type(exc).__name__)\n"
    )
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\ndone = True\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["imported", "True", "_Terminated"]


def test_a_signal_in_a_function_that_takes_a_lock_waits_until_the_lock_can_be_freed() -> None:
    program = (
        "import functools, logging, signal, threading, time, types\n"
        "from captionmill.pipeline.terminal import endings\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have told pytest to ignore it
        "handler, condition = logging.Handler(), threading.Condition()\n"
        "ctrl_c = functools.partial(signal.raise_signal, signal.SIGINT)\n"
        "handler.lock = types.SimpleNamespace(acquire=ctrl_c, release=lambda: print('handler'))\n"
        "condition._lock = types.SimpleNamespace(__enter__=ctrl_c, __exit__=lambda *_: print('condition'))\n"
        "for take, free in ((handler.acquire, handler.release), (condition.__enter__, condition.__exit__)):\n"
        "    endings.listen_to_signals()\n"
        "    try:\n"
        "        take()\n"
        "        free()\n"
        "        for _ in range(500): time.sleep(0.01)\n"  # what a thread interrupts is not one long call
        "    except KeyboardInterrupt:\n"
        "        print('stopped')\n"
        "handler.lock = None\n"  # which Python takes at its end
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["handler", "stopped", "condition", "stopped"]


def test_a_signal_in_a_function_that_opens_a_file_waits_until_the_file_can_be_closed() -> None:
    program = (
        "import functools, signal, time\n"
        "from captionmill.data import files, regular\n"
        "from captionmill.pipeline.terminal import endings\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have told pytest to ignore it
        "ctrl_c = functools.partial(signal.raise_signal, signal.SIGINT)\n"
        "for module, name in ((regular, '_open_regular'), (files, '_create_partial')):\n"
        "    hasattr(module, name) or print(name, 'is not there')\n"
        "    exec(compile(f'def {name}():\\n    ctrl_c()\\n    print(\"opened\")', module.__file__, 'exec'))\n"
        "    endings.listen_to_signals()\n"
        "    try:\n"
        "        locals()[name]()\n"
        "        for _ in range(500): time.sleep(0.01)\n"  # what a thread interrupts is not one long call
        "    except KeyboardInterrupt:\n"
        "        print('stopped')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["opened", "stopped"] * 2


def test_an_error_that_a_signal_became_on_its_way_is_that_signal() -> None:
    program = (
        "import signal, click\n"
        "from captionmill.data.errors import WeightsError\n"
        "from captionmill.pipeline.terminal import endings\n"
        "@click.group(cls=endings.ErrorGroup)\n"
        "def group(): endings.listen_to_signals()\n"
        "@group.command()\n"
        "def read():\n"
        "    try: signal.raise_signal(signal.SIGTERM)\n"
        "    except BaseException: raise WeightsError('not readable')\n"  # as torch's reader does
        "group(['read'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.startswith("\nStopped. ")
    assert "not readable" not in done.stderr
