"""Where the time of an extraction goes, and what would make it shorter."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TypeVar

from captionmill.stages.machine import has_fast_int8

T = TypeVar("T")

_BOUND = 0.2  # share of the time above which advice is given


@dataclass
class Meter:
    """Seconds of one extraction, or the sum over its processes."""

    images: int = 0
    """Images turned into features."""
    wall_s: float = 0.0
    """From requesting the first image to delivering the last row, summed over processes."""
    input_wait_s: float = 0.0
    """The network was idle, waiting for images."""
    forward_s: float = 0.0
    """Waiting for the network."""
    write_s: float = 0.0
    """Writing rows to the store, including checksums and flushes."""
    read_s: float = 0.0
    """Reading files, summed over the decoding threads."""
    decode_s: float = 0.0
    """Decoding and resizing, summed over the decoding threads."""
    workers: int = 0
    """Decoding threads per process."""

    def __iadd__(self, other: "Meter") -> "Meter":
        """Add another process's seconds and images."""
        workers = max(self.workers, other.workers)
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        self.workers = workers
        return self

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Count the time inside the block as writing."""
        started = time.perf_counter()
        yield
        self.write_s += time.perf_counter() - started

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`, with the time until each one arrives counted as waiting for images."""
        remaining = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(remaining, None)
            self.input_wait_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def fractions(self) -> dict[str, float]:
        """Parts of the time, 0 to 1, by the step that was waited for; they add up to 1.

        Reading and decoding run in parallel with the network: they count only while the network waited for them.
        """
        busy_s = self.read_s + self.decode_s
        reading_s = self.input_wait_s * self.read_s / busy_s if busy_s else 0.0
        parts = {
            "reading": reading_s,
            "decoding": self.input_wait_s - reading_s,
            "forward": self.forward_s,
            "writing": self.write_s,
        }
        total_s = sum(parts.values())
        return {name: part / total_s if total_s else 0.0 for name, part in parts.items()}

    def advice(self, *, cores: int, engine: str) -> str:
        """One line: what limits the extraction, and what to do about it.

        `cores` is how many the process may use, `engine` what ran the network, as its `description`.
        """
        parts = self.fractions()
        if parts["writing"] > _BOUND:
            return "writing-bound: put the output on a faster disk"
        if parts["reading"] > _BOUND and parts["reading"] > parts["decoding"]:
            return f"reading-bound: copy the images to faster storage, or raise `workers` (now {self.workers})"
        if parts["decoding"] > _BOUND and self.workers < cores:
            return f"decoding-bound: raise `workers` (now {self.workers}, {cores} cores)"
        if parts["decoding"] > _BOUND:
            return f"decoding-bound: all {cores} cores decode; more cores help, or smaller images"
        if engine.startswith("cuda"):
            return "forward-bound: the network is the limit; if the GPU is not always busy, more `jobs` help"
        advice = "forward-bound: the network is the limit; a GPU or more processes on more machines (`cluster`) help"
        is_doubled = engine == "cpu openvino float32" and has_fast_int8()
        return f"{advice}, or the less exact `precision` int8" if is_doubled else advice
