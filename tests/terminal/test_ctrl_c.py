"""Signals at moments that are hard to hit: again and again, in several processes, and when a command has just ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from builders import listen_to_ctrl_c
from click.testing import CliRunner
from PIL import Image

from captionmill.cli import main
from captionmill.data.features.parts import parts_dir
from captionmill.data.features.store import FeatureStore

MARK_STARTING_WORKERS = """
import os, sys
if any("popen_loky" in word for word in sys.orig_argv):
    open(os.environ["WORKER_STARTS"], "w").close()
"""


@contextmanager
def extracting(tmp_path: Path, thin_weights: Path, moment: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """An extraction of 1,000 images in two further processes at a moment, and its command without `--jobs`."""
    photos, output = tmp_path / "photos", tmp_path / "f.h5"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(1000):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(photos / f"{number:04d}.png")
    (tmp_path / "sitecustomize.py").write_text(MARK_STARTING_WORKERS)
    starts = tmp_path / "starts"
    environment = {"PYTHONPATH": str(tmp_path), "WORKER_STARTS": str(starts)}
    command = ["extract", str(photos), "--output", str(output), "--backbone", "scenes-resnet14"]
    command += ["--preprocess", "squash", "--image-size", "32", "--engine", "torch", "--precision", "fp32"]
    command += ["--weights", str(thin_weights), "--flush-every", "8"]
    with subprocess.Popen(
        [sys.executable, "-m", "captionmill", *command, "--jobs", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
        preexec_fn=listen_to_ctrl_c,
    ) as process:
        while not (starts.exists() if moment == "workers start" else any(parts_dir(output).glob("part-*.h5"))):
            assert process.poll() is None
            time.sleep(0.01)
        yield process, command


@pytest.mark.parametrize("moment", ["workers start", "workers have made rows"])
def test_ctrl_c_pressed_again_and_again_ends_all_processes_without_a_traceback(
    tmp_path: Path, thin_weights: Path, moment: str
) -> None:
    output = tmp_path / "f.h5"
    with extracting(tmp_path, thin_weights, moment) as (process, command):
        for _ in range(7):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.01)
        told = process.communicate(timeout=60)[1]  # ends when no process can write to it any more
    assert process.returncode == -signal.SIGINT
    assert told.strip().startswith("Stopped. ")
    assert "Traceback" not in told  # joblib may warn of a semaphore that two processes have removed
    assert "KeyboardInterrupt" not in told
    if moment == "workers have made rows":
        assert 0 < len(FeatureStore.open(output)) < 1000
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert len(FeatureStore.open(output)) == 1000


@pytest.mark.parametrize("moment", ["workers start", "workers have made rows"])
def test_workers_end_when_the_process_that_started_them_is_killed(
    tmp_path: Path, thin_weights: Path, moment: str
) -> None:
    with extracting(tmp_path, thin_weights, moment) as (process, _):
        process.kill()
        process.wait()
        process.communicate(timeout=60)  # ends when no process can write to it any more


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_when_a_command_has_just_ended_ends_it_without_a_word(number: signal.Signals, code: int) -> None:
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have told pytest to ignore it
        "from captionmill import cli\n"
        "from captionmill.__main__ import main\n"
        "entered = []\n"
        "def watch(frame, event, _):\n"
        "    entered.append(frame) if (event, frame.f_code.co_name) == ('call', 'streams_put_back') else None\n"
        "    if len(entered) == 2:\n"  # the end of its block, after the command
        "        sys.setprofile(None)\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "sys.setprofile(watch)\n"
        "@cli.main.command()\n"
        "def end(): print('done')\n"
        "sys.argv = ['captionmill', 'end']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "done\n", "")


def test_the_same_signal_within_a_second_is_one_and_another_is_not() -> None:
    program = (
        "import signal, time\n"
        "from captionmill.pipeline.terminal import endings\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have told pytest to ignore it
        "endings.listen_to_signals()\n"
        "for number, wait_s in ((2, 0), (2, 0), (15, 0), (2, 1.1), (2, 0)):\n"
        "    time.sleep(wait_s)\n"
        "    try:\n"
        "        signal.raise_signal(number)\n"
        "        print('ignored')\n"
        "    except KeyboardInterrupt as exc:\n"
        "        print(type(exc).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["KeyboardInterrupt", "ignored", "_Terminated", "KeyboardInterrupt", "ignored"]
