"""The network in OpenVINO: on a CPU 1.5 times as fast as torch in fp32 (docs/benchmarks.md, two AVX2 cores).

Its converted form is kept in the cache, so that later runs neither import torchvision, nor read the weights, nor trace.
"""

import json
import logging
import queue
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino

from captionmill.data.cache import NETWORKS, key_of
from captionmill.data.features.file import Features
from captionmill.data.images.decode import Pixels
from captionmill.stages.encoding.encoder import Encoder
from captionmill.stages.machine import choose_precision, thread_count
from captionmill.stages.settings import ExtractConfig, Precision

if TYPE_CHECKING:
    import torch

_logger = logging.getLogger(__name__)

_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
_BATCH_SIZE = 8  # on two cores as fast as 32, with less padding for a few images
_LARGE = 10_000_000  # weights: converting so many takes seconds
_STREAMS = 2  # two batches in parallel leave no core idle between layers


class OpenVinoEngine:
    """An encoder's network on the CPU; an `Engine`."""

    def __init__(self, encoder: Encoder, config: ExtractConfig) -> None:
        """Convert and compile the network for this CPU, on as many threads as torch would use."""
        precision = choose_precision(config.precision, "cpu")
        self.batch_size = config.batch_size or _BATCH_SIZE
        self.description = f"cpu openvino {_PRECISIONS[precision]}"
        self._parts = _find_parts(encoder, precision)
        self._threads = thread_count()
        streams = min(_STREAMS, self._threads)
        self.depth = streams + 1
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="openvino")
        self._chains: queue.SimpleQueue[_Chain] = queue.SimpleQueue()
        self._compiled_size = 0

    def submit(self, pixels: Pixels) -> Callable[[], Features]:
        """Start on [B, H, W, 3] uint8 images; the result waits for their rows, [B, D] float32."""
        count = len(pixels)
        if self._compiled_size != self.batch_size:
            self._chains = _compile(self._parts, self.batch_size, min(_STREAMS, self._threads), self._threads)
            self._compiled_size = self.batch_size
        if count < self.batch_size:
            pixels = np.concatenate([pixels, np.zeros((self.batch_size - count, *pixels.shape[1:]), np.uint8)])
        future = self._pool.submit(_run_on_a_free, self._chains, pixels)
        return lambda: future.result()[:count]


class _Chain:
    """The compiled parts of the network, which run one batch at a time."""

    def __init__(self, compiled: Sequence[Any]) -> None:
        self._requests = [half.create_infer_request() for half in compiled]

    def run(self, pixels: Pixels) -> Features:
        tensor = openvino.Tensor(pixels)
        for request in self._requests:
            request.set_input_tensor(tensor)
            request.infer()
            tensor = request.get_output_tensor()
        rows: Features = tensor.data.copy()
        return rows


def _run_on_a_free(chains: "queue.SimpleQueue[_Chain]", pixels: Pixels) -> Features:
    chain = chains.get()
    try:
        return chain.run(pixels)
    finally:
        chains.put(chain)


@dataclass(frozen=True)
class _Part:
    """A part of the converted network: all of it in float32, else its stem in float32 and its trunk in bfloat16."""

    model: Any
    hint: str
    """The precision that it is computed in, as OpenVINO calls it."""
    shape: list[int]
    """Of one image's input; -1 where it differs from image to image."""


def _find_parts(encoder: Encoder, precision: Precision) -> list[_Part]:
    """The parts of the converted network, read from the cache or else made and kept there.

    They are read from files in any case: OpenVINO orders the sums of a network that was not written otherwise, and
    rounds them to other bits.
    """
    if not encoder.spec.weights_sha256:  # random weights, to measure a speed
        return _convert_network(encoder, precision)
    key = _cache_key(encoder, precision)
    entry = NETWORKS.find(key)
    if entry is not None and (parts := _read_parts(entry)):
        return parts
    if sum(weights.numel() for weights in encoder.network.parameters()) > _LARGE:
        _logger.info("converting the network for this CPU, kept in the cache (%s) for later runs", NETWORKS.name)
    converted = _convert_network(encoder, precision)
    entry = NETWORKS.keep(key, lambda folder: _write_parts(folder, converted))
    if entry is not None and (parts := _read_parts(entry)):
        return parts
    with tempfile.TemporaryDirectory(prefix="captionmill-") as folder:
        _write_parts(Path(folder), converted)
        return _read_parts(Path(folder))


def _cache_key(encoder: Encoder, precision: Precision) -> str:
    """What differs whenever the converted network does."""
    spec, here = encoder.spec, Path(__file__)
    sources = [path.read_text(encoding="utf-8") for path in (here, here.with_name("network.py"))]
    versions = [version(package) for package in ("openvino", "torch", "torchvision")]
    return key_of(spec.backbone, spec.weights_sha256, spec.preprocess, spec.image_size, precision, versions, sources)


def _write_parts(folder: Path, parts: Sequence[_Part]) -> None:
    for number, part in enumerate(parts):
        openvino.serialize(part.model, str(folder / f"{number}.xml"), str(folder / f"{number}.bin"))
    settings = [(part.hint, part.shape) for part in parts]
    (folder / "parts.json").write_text(json.dumps(settings), encoding="utf-8")


def _read_parts(folder: Path) -> list[_Part]:
    """The parts that `_write_parts` wrote; none if another process has removed them."""
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the files may be removed at any time
    try:
        settings = json.loads((folder / "parts.json").read_bytes())
        models = [core.read_model(str(folder / f"{number}.xml")) for number in range(len(settings))]
    except (OSError, RuntimeError):
        return []
    return [_Part(model, hint, shape) for model, (hint, shape) in zip(models, settings, strict=True)]


def _convert_network(encoder: Encoder, precision: Precision) -> list[_Part]:
    import torch

    network, size = encoder.network, encoder.spec.image_size
    is_whole = encoder.spec.preprocess == "whole"
    outer = [-1, -1, 3] if is_whole else [size, size, 3]
    pixels = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    if precision == "fp32":
        return [_Part(_convert(network, pixels), "f32", outer)]
    with torch.inference_mode():
        maps = network.stem(pixels)
    inner = [-1, -1] if is_whole else list(maps.shape[2:])
    return [
        _Part(_convert(network.stem, pixels), "f32", outer),
        _Part(_convert(network.trunk, maps), "bf16", [maps.shape[1], *inner]),
    ]


def _compile(parts: Sequence[_Part], batch_size: int, streams: int, threads: int) -> "queue.SimpleQueue[_Chain]":
    """One chain per stream, for batches of `batch_size`."""
    core = openvino.Core()
    compiled = []
    for part in parts:
        part.model.reshape([batch_size, *part.shape])
        settings = {
            "INFERENCE_PRECISION_HINT": part.hint,
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(threads),
            "PERFORMANCE_HINT": "THROUGHPUT",
            "ENABLE_CPU_PINNING": "NO",  # a thread pinned to a core would wait for decoding threads there
        }
        compiled.append(core.compile_model(part.model, "CPU", settings))
    chains: queue.SimpleQueue[_Chain] = queue.SimpleQueue()
    for _ in range(streams):
        chains.put(_Chain(compiled))
    return chains


def _convert(module: "torch.nn.Module", example: "torch.Tensor") -> Any:
    """An OpenVINO model of `module`; by the front end: `openvino.convert_model` reports each use to its makers."""
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of torch's tracer
        decoder = TorchScriptPythonDecoder(torch.jit.trace(module, example, check_trace=False))
        front_end = FrontEndManager().load_by_framework("pytorch")
        return front_end.convert(front_end.load(decoder))
