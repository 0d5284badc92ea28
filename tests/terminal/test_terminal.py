"""What every command shares on the terminal: JSON lines, completion, the version, two ways to start."""

import importlib.metadata
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from builders import listen_to_ctrl_c, make_task
from click.testing import CliRunner

from captionmill.cli import main
from captionmill.pipeline.terminal.json_lines import JsonLines, streams_put_back
from captionmill.pipeline.terminal.progress import EchoHandler, Intervals, ProgressBars

THIN = ["--backbone", "scenes-resnet14", "--preprocess", "squash", "--image-size", "32"]
KEYS = ["time", "level", "event", "message"]


def run_json(*arguments: object, code: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The objects on stdout and on stderr; fails if a line of either is none."""
    before = sys.stdout, sys.stderr, sys.excepthook
    result = CliRunner().invoke(main, [*map(str, arguments), "--log-format", "json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    assert (sys.stdout, sys.stderr, sys.excepthook) == before
    out, err = ([json.loads(line) for line in text.splitlines()] for text in (result.stdout, result.stderr))
    for values in out + err:
        assert list(values)[:4] == KEYS
        assert datetime.fromisoformat(values["time"]).utcoffset() == timedelta(0)
    return out, err


def test_an_extraction_is_told_in_objects(photos: Path, thin_weights: Path, tmp_path: Path) -> None:
    store = tmp_path / "f.h5"
    out, err = run_json("extract", photos, "--output", store, *THIN, "--weights", thin_weights)
    (result,) = out
    assert (result["level"], result["event"]) == ("info", "result")
    assert result["message"].startswith(f"{store}: 9 images found: 0 cached before, 8 extracted, 1 failed; ")
    (progress,) = [values for values in err if values["event"] == "progress"]
    assert [progress[name] for name in ("level", "label", "done", "total")] == ["info", "extract", 9, 9]
    assert progress["message"].startswith("extract: 9 of 9")
    assert list(progress)[4:] == ["label", "done", "total", "rate", "left_s"]
    notes = [values["message"] for values in err if values["event"] == "note"]
    assert notes[-2] == f"Not readable, listed in failures.csv beside {store}:"
    assert notes[-1].startswith("  broken.jpg: ")


def test_quiet_leaves_the_result_and_what_is_wrong(photos: Path, thin_weights: Path, tmp_path: Path) -> None:
    out, err = run_json(
        "extract",
        photos,
        "--output",
        tmp_path / "f.h5",
        *THIN,
        "--weights",
        thin_weights,
        "--quiet",
        "--strict",
        code=1,
    )
    assert [values["event"] for values in out] == ["result"]
    assert [values["event"] for values in err] == ["note", "note", "error"]
    assert (err[-1]["level"], err[-1]["message"]) == ("error", "1 image cannot be read, and --strict is given")


def test_a_training_is_told_in_objects(tmp_path: Path) -> None:
    store, captions = make_task(tmp_path)
    small = ["--min-count", 1, "--embed-dim", 8, "--hidden-dim", 12, "--batch-size", 3, "--max-epochs", 2]
    out, err = run_json("train", store, "--captions", captions, "--output", tmp_path / "model", *small)
    assert out[0]["message"].startswith(f"{tmp_path / 'model'}: ")
    assert [values["label"] for values in err if values["event"] == "progress"] == ["epoch 1 of 2", "epoch 2 of 2"]
    notes = [values["message"] for values in err if values["event"] == "note"]
    assert [note.split(":")[0] for note in notes] == ["images", "epoch 1", "epoch 2"]


def test_errors_and_wrong_usage_are_objects(tmp_path: Path) -> None:
    _, (error,) = run_json("caption", tmp_path, "--model", tmp_path / "none", "--output", tmp_path / "c.csv", code=1)
    assert (error["level"], error["event"]) == ("error", "error")
    assert error["message"].startswith(f"{tmp_path / 'none'}: no trained model here")
    _, (usage,) = run_json("caption", tmp_path, "--output", tmp_path / "c.csv", code=2)
    assert (usage["level"], usage["message"]) == ("error", "Missing option '--model'.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["caption", "--modle", "m"], "No such option '--modle'."),
        (["captoin"], "No such command 'captoin'."),
        (["--loud"], "No such option '--loud'."),
        (["features", "mrege"], "No such command 'mrege'."),
    ],
)
def test_what_does_not_exist_is_told_in_an_object(words: list[str], message: str) -> None:
    out, (usage,) = run_json(*words, code=2)
    assert (out, usage["level"], usage["event"]) == ([], "error", "error")
    assert message in usage["message"]


def test_every_command_but_the_one_that_prints_a_script_takes_the_log_format() -> None:
    def commands(group: click.Group) -> Iterator[click.Command]:
        for command in group.commands.values():
            yield from commands(command) if isinstance(command, click.Group) else [command]

    without = [
        command.name
        for command in commands(main)
        if not any("--log-format" in option.opts for option in command.params)
    ]
    assert without == ["completion"]


def test_a_quiet_pipeline_shows_no_commands(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    plan = "[train]\nfeatures = '{}'\ncaptions = '{}'\noutput = '{}'\nmin_count = 1\nmax_epochs = 1\n"
    told = []
    for name in ("loud", "quiet"):
        (tmp_path / f"{name}.toml").write_text(plan.format(features, captions, tmp_path / name))
        _, err = run_json("run", tmp_path / f"{name}.toml", *(["--quiet"] if name == "quiet" else []))
        told.append([values["message"].split()[0] for values in err if values["message"].startswith("$")])
    assert told == [["$"], []]


def test_log_records_are_objects_with_their_level_and_any_other_line_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stderr", JsonLines(file, "note"))
        record = logging.LogRecord("captionmill.x", logging.WARNING, "x.py", 1, "only %d left", (3,), None)
        EchoHandler().emit(record)
        click.echo("\nin two", nl=False, err=True)
        click.echo(" parts", err=True)
        click.echo("unfinished", nl=False, err=True)
        with streams_put_back():
            pass
    warning, note, last = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    assert [warning[name] for name in ("level", "event", "message", "logger")] == [
        "warning",
        "log",
        "only 3 left",
        "captionmill.x",
    ]
    assert [note[name] for name in ("level", "event", "message")] == ["info", "note", "in two parts"]
    assert last["message"] == "unfinished"


def test_a_bug_is_an_object_with_its_traceback() -> None:
    program = (
        "from captionmill.cli import main\n"
        "from captionmill.pipeline.terminal.options import quiet_option\n"
        "@main.command()\n@quiet_option\ndef broken(quiet): raise RuntimeError('no such luck')\n"
        "main(['broken', '--log-format', 'json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    bug = json.loads(done.stderr)
    assert (bug["level"], bug["event"], bug["message"]) == ("critical", "bug", "RuntimeError: no such luck")
    assert bug["traceback"].startswith("Traceback (most recent call last):\n")


def test_rate_and_time_left_are_told_once_they_mean_something(capsys: pytest.CaptureFixture[str]) -> None:
    clock = [100.0]
    steps = [
        ("extract", 0, 0.0),
        ("extract", 32, 0.5),
        ("extract", 640, 9.5),
        ("compare", 0, 0.0),
        ("compare", 50, 2.0),
    ]
    with ProgressBars(quiet=False, intervals=Intervals(lines_s=-1), clock=lambda: clock[0]) as progress:
        for label, done, seconds in steps:
            clock[0] += seconds
            progress(label, done, 1280)
    assert capsys.readouterr().err.splitlines() == [
        "extract: 0 of 1,280",
        "extract: 32 of 1,280, 20 s left",
        "extract: 640 of 1,280, 64 images/s, 10 s left",
        "compare: 0 of 1,280",
        "compare: 50 of 1,280, 49 s left",
    ]


def test_progress_objects_come_at_intervals_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(sys, "stderr", JsonLines(sys.stderr, "note"))
    with ProgressBars(quiet=False, clock=lambda: clock[0]) as progress:
        for done in range(13):
            progress("extract", done * 10, 120)
            clock[0] += 1
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(values["done"], values["rate"], values["left_s"]) for values in found] == [
        (60, 10.0, 6.0),
        (120, 10.0, None),
    ]
    assert found[0]["message"] == "extract: 60 of 120, 10 images/s, 6 s left"


def complete(*words: str) -> list[str]:
    """What the shell would offer after `words`, the last of which is not finished."""
    environment = os.environ | {
        "_CAPTIONMILL_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["captionmill", *words]),
        "COMP_CWORD": str(len(words)),
    }
    program = "from captionmill.cli import main; main(prog_name='captionmill')"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return [line.split(",", 1)[1] for line in done.stdout.splitlines()]


def test_the_shell_completes_commands_options_and_values() -> None:
    assert {"export", "extract"} <= set(complete("ex"))
    assert "--image-size" in complete("extract", "--im")
    assert complete("extract", "--backbone", "resnet1") == ["resnet101", "resnet152"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_one_its_shell_understands(shell: str) -> None:
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    result = CliRunner().invoke(main, ["completion", shell], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"_CAPTIONMILL_COMPLETE={shell}_complete" in result.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.stdout, text=True, check=True)


def test_the_version_is_the_packages_own_and_there_are_two_ways_to_start() -> None:
    version = importlib.metadata.version("captionmill")
    assert CliRunner().invoke(main, ["--version"]).stdout.endswith(f", version {version}\n")
    done = subprocess.run(
        [sys.executable, "-m", "captionmill", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith(f", version {version}\n")


AT_IMPORT = """class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "captionmill.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
AT_EXIT = "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"


@pytest.mark.skipif(os.name == "nt", reason="a process cannot send itself Ctrl-C on Windows")
@pytest.mark.parametrize("moment", [AT_IMPORT, AT_EXIT])
def test_ctrl_c_before_and_after_a_command_ends_it_without_a_word(moment: str) -> None:
    program = (
        "import atexit, os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have told pytest to ignore it
        f"{moment}sys.argv = ['captionmill', '--version']\n"
        "from captionmill.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert bool(done.stdout) == (moment == AT_EXIT)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_ctrl_c_in_a_command_ends_the_loop_of_a_shell_too(tmp_path: Path) -> None:
    program, begun = tmp_path / "program.py", tmp_path / "begun"
    program.write_text(
        "import sys, time\n"
        "from captionmill import cli\n"
        "from captionmill.__main__ import main\n"
        "@cli.main.command()\n"
        "def wait():\n"
        f"    open({str(begun)!r}, 'a').write('begun ')\n"
        "    time.sleep(60)\n"
        "sys.argv = ['captionmill', 'wait']\n"
        "main()\n"
    )
    loop = f"for i in 1 2; do {sys.executable} {program}; done"
    with subprocess.Popen(
        ["bash", "-c", loop], stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listen_to_ctrl_c
    ) as shell:
        while not begun.exists() or not begun.read_text():
            assert shell.poll() is None
            time.sleep(0.01)
        os.killpg(shell.pid, signal.SIGINT)
        told = shell.communicate()[1]
    assert shell.returncode == -signal.SIGINT
    assert begun.read_text() == "begun "
    assert told.startswith("\nStopped. ")
    assert told.count("\n") == 2
