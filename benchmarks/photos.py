"""Helpers of several benchmarks: many images out of few, and a command run as a user runs it."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from captionmill.data.images.find import find_images


def link_photos(photos: Path, folder: Path, count: int) -> Path:
    """A folder of `count` links to the images of `photos`, each used as often as needed."""
    sources = [Path(image.path) for image in find_images(photos)]
    folder.mkdir(parents=True)
    for number in range(count):
        source = sources[number % len(sources)]
        (folder / f"{number:07d}{source.suffix}").symlink_to(source.resolve())
    return folder


@dataclass
class Command:
    """One run of the command line."""

    seconds: float
    cpu_seconds: float
    peak_rss_gb: float
    output: str

    @property
    def rate(self) -> float:
        """Images/s as `extract` prints them."""
        rates = re.findall(r"\(([\d,.]+) images/s", self.output)
        return float(rates[-1].replace(",", ""))


def run_command(*words: object) -> Command:
    """Run `captionmill WORDS` in its own process; its output ends the benchmark if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "captionmill", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(output)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Command(time.perf_counter() - started, cpu_seconds, usage.ru_maxrss / 1e6, output)
