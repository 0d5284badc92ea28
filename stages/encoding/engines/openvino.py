"""The network in OpenVINO: on a CPU 1.5 times as fast as torch in fp32 (docs/benchmarks.md, two AVX2 cores).

Its converted form is kept in the cache, so that later runs neither import torchvision, nor read the weights, nor trace.
"""

import logging
import queue
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from captionmill.data.cache import NETWORKS, key_of
from captionmill.data.features.file import Features
from captionmill.data.images.decode import Pixels
from captionmill.stages.encoding.encoder import Encoder
from captionmill.stages.machine import choose_precision, has_fast_bf16, import_openvino, thread_count
from captionmill.stages.settings import ExtractConfig, Precision

_logger = logging.getLogger(__name__)

openvino = import_openvino()

_BATCH_SIZE = 8  # on two cores as fast as 32, with less padding for a few images
_LARGEST_BATCH = 256  # each image is an input of the compiled network: thousands take minutes to compile
_NAMES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
_LARGE = 10_000_000  # weights: converting so many takes seconds
_STREAMS = 2  # two batches in parallel leave no core idle between layers


class OpenVinoEngine:
    """An encoder's network on the CPU; an `Engine`."""

    def __init__(self, encoder: Encoder, config: ExtractConfig) -> None:
        """Convert the network for this CPU, for as many threads as torch would use."""
        precision = choose_precision(config.precision, "cpu")
        self.batch_size = min(config.batch_size or _BATCH_SIZE, _LARGEST_BATCH)
        self.description = f"cpu openvino {_NAMES[precision]}"
        in_halves = precision == "bf16" or (precision == "int8" and has_fast_bf16())  # all that is not in 8 bits
        self._hint = "bf16" if in_halves else "f32"
        self._network = _find_network(encoder, precision)
        size = -1 if encoder.spec.preprocess == "whole" else encoder.spec.image_size
        self._shape = [size, size, 3]
        self._threads = thread_count()
        self._streams = min(_STREAMS, self._threads)
        self.depth = self._streams + 1
        self._pool = ThreadPoolExecutor(self._streams, thread_name_prefix="openvino")
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Requests that compute no batch now."""
        self._compiled_size = 0

    def submit(self, images: Sequence[Pixels]) -> Callable[[], Features]:
        """Start on B uint8 images [H, W, 3]; the result waits for their rows, [B, D] float32."""
        count = len(images)
        if self._compiled_size != self.batch_size:
            self._free = self._compile()
            self._compiled_size = self.batch_size
        filled = [*images, *[np.zeros_like(images[0])] * (self.batch_size - count)]
        future = self._pool.submit(_run_on_a_free, self._free, filled)
        return lambda: future.result()[:count]

    def _compile(self) -> "queue.SimpleQueue[Any]":
        """One request per stream, for batches of `batch_size`."""
        network = _with_an_input_for_each(self._network, self.batch_size, self._shape)
        settings = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "NUM_STREAMS": str(self._streams),
            "INFERENCE_NUM_THREADS": str(self._threads),
            "PERFORMANCE_HINT": "THROUGHPUT",
            "ENABLE_CPU_PINNING": "NO",  # a thread pinned to a core would wait for decoding threads there
        }
        compiled = openvino.Core().compile_model(network, "CPU", settings)
        free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self._streams):
            free.put(compiled.create_infer_request())
        return free


def _with_an_input_for_each(network: Any, count: int, shape: list[int]) -> Any:
    """`network` for `count` images that lie anywhere in memory, each an input [1, *shape], instead of one batch."""
    network = network.clone()
    (batch,) = network.inputs
    images = [openvino.opset1.parameter([1, *shape], np.uint8) for _ in range(count)]
    together = openvino.opset1.concat(images, 0).output(0)
    for target in batch.get_target_inputs():
        target.replace_source_output(together)
    return openvino.Model(network.outputs, images)


def _run_on_a_free(free: "queue.SimpleQueue[Any]", images: list[Pixels]) -> Features:
    request = free.get()
    try:
        # read in their own memory, unless they are views such as mirror images; they live until `infer` has read them
        whole = [np.ascontiguousarray(image) for image in images]
        for number, image in enumerate(whole):
            request.set_input_tensor(number, openvino.Tensor(image, [1, *image.shape], openvino.Type.u8))
        request.infer()
        rows: Features = request.get_output_tensor().data.copy()
        return rows
    finally:
        free.put(request)


def _find_network(encoder: Encoder, precision: Precision) -> Any:
    """The converted network, read from the cache or else made and kept there.

    It is read from files in any case: OpenVINO orders the sums of a network that was not written otherwise, and rounds
    them to other bits.
    """
    if not encoder.spec.weights_sha256:  # random weights, to measure a speed
        return _convert(encoder, precision)
    key = _cache_key(encoder, precision)
    entry = NETWORKS.find(key)
    if entry is not None and (network := _read_network(entry)) is not None:
        return network
    if sum(weights.numel() for weights in encoder.network.parameters()) > _LARGE:
        _logger.info("converting the network for this CPU, kept in the cache (%s) for later runs", NETWORKS.name)
    converted = _convert(encoder, precision)
    entry = NETWORKS.keep(key, lambda folder: _save_network(folder, converted))
    if entry is not None and (network := _read_network(entry)) is not None:
        return network
    with tempfile.TemporaryDirectory(prefix="captionmill-") as folder:
        _save_network(Path(folder), converted)
        return _read_network(Path(folder))


def _cache_key(encoder: Encoder, precision: Precision) -> str:
    """What differs whenever the converted network does."""
    spec, here = encoder.spec, Path(__file__)
    makers = (here, *(here.parents[1] / name for name in ("network.py", "quantize.py")))
    sources = [path.read_text(encoding="utf-8") for path in makers]
    versions = [version(package) for package in ("openvino", "torch", "torchvision")]
    return key_of(spec.backbone, spec.weights_sha256, spec.preprocess, spec.image_size, precision, versions, sources)


def _save_network(folder: Path, network: Any) -> None:
    try:
        openvino.serialize(network, str(folder / "network.xml"), str(folder / "network.bin"))
    except RuntimeError as exc:  # as it calls a full disk
        raise OSError(f"{folder}: the converted network cannot be written; is the disk full? ({exc})") from exc


def _read_network(folder: Path) -> Any | None:
    """The network that `_save_network` wrote; None if another process has removed it."""
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the files may be removed at any time
    try:
        return core.read_model(str(folder / "network.xml"))
    except (OSError, RuntimeError):
        return None


def _convert(encoder: Encoder, precision: Precision) -> Any:
    """The network in OpenVINO; by the front end: `openvino.convert_model` reports each use to its makers."""
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    from openvino.passes import ConstantFolding, Manager

    from captionmill.stages.encoding.network import feed_whole_numbers
    from captionmill.stages.encoding.quantize import quantize

    size = encoder.spec.image_size
    pixels = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    adapt = {"fp32": None, "bf16": feed_whole_numbers, "int8": quantize}[precision]
    network = adapt(encoder.network) if adapt else encoder.network
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of torch's tracer
        decoder = TorchScriptPythonDecoder(torch.jit.trace(network, pixels, check_trace=False))
        front_end = FrontEndManager().load_by_framework("pytorch")
        converted = front_end.convert(front_end.load(decoder))
    passes = Manager()
    passes.register_pass(ConstantFolding())  # OpenVINO must know the ranges of what is rounded
    passes.run_passes(converted)
    return converted
