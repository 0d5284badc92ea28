"""The network in OpenVINO: on a CPU 1.5 times as fast as torch in fp32 (docs/benchmarks.md, two AVX2 cores)."""

import queue
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import nn

from captionmill.data.features.file import Features
from captionmill.data.images.decode import Pixels
from captionmill.stages.encoding.encoder import Encoder
from captionmill.stages.encoding.network import FeatureNetwork
from captionmill.stages.machine import choose_device, choose_dtype
from captionmill.stages.settings import ExtractConfig

_BATCH_SIZE = 8  # on two cores as fast as 32, with less padding for a few images
_STREAMS = 2  # two batches in parallel leave no core idle between layers


class OpenVinoEngine:
    """An encoder's network on the CPU; an `Engine`."""

    def __init__(self, encoder: Encoder, config: ExtractConfig) -> None:
        """Convert and compile the network for this CPU, on as many threads as torch may use."""
        dtype = choose_dtype(config.precision, choose_device("cpu"))
        self.batch_size = config.batch_size or _BATCH_SIZE
        self.description = f"cpu openvino {str(dtype).removeprefix('torch.')}"
        size = encoder.spec.image_size
        self._model = _Model(encoder.network, -1 if encoder.spec.preprocess == "whole" else size, size, dtype)
        self._threads = torch.get_num_threads()
        streams = min(_STREAMS, self._threads)
        self.depth = streams + 1
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="openvino")
        self._chains: queue.SimpleQueue[_Chain] = queue.SimpleQueue()
        self._compiled_size = 0

    def submit(self, pixels: Pixels) -> Callable[[], Features]:
        """Start on [B, H, W, 3] uint8 images; the result waits for their rows, [B, D] float32."""
        count = len(pixels)
        if self._compiled_size != self.batch_size:
            self._chains = self._model.compile(self.batch_size, min(_STREAMS, self._threads), self._threads)
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


class _Model:
    """The converted network: in one part for float32, else its stem in float32 and its trunk in bfloat16."""

    def __init__(self, network: FeatureNetwork, side: int, example_side: int, dtype: torch.dtype) -> None:
        pixels = torch.zeros((2, example_side, example_side, 3), dtype=torch.uint8)
        if dtype == torch.float32:
            self._halves = [(_convert(network, pixels), "f32", [side, side, 3])]
            return
        with torch.inference_mode():
            maps = network.stem(pixels)
        inner = [-1, -1] if side < 0 else list(maps.shape[2:])
        self._halves = [
            (_convert(network.stem, pixels), "f32", [side, side, 3]),
            (_convert(network.trunk, maps), "bf16", [maps.shape[1], *inner]),
        ]

    def compile(self, batch_size: int, streams: int, threads: int) -> "queue.SimpleQueue[_Chain]":
        """One chain per stream, for batches of `batch_size`."""
        core = openvino.Core()
        compiled = []
        for model, hint, shape in self._halves:
            model.reshape([batch_size, *shape])
            settings = {
                "INFERENCE_PRECISION_HINT": hint,
                "NUM_STREAMS": str(streams),
                "INFERENCE_NUM_THREADS": str(threads),
                "PERFORMANCE_HINT": "THROUGHPUT",
                "ENABLE_CPU_PINNING": "NO",  # a thread pinned to a core would wait for decoding threads there
            }
            compiled.append(core.compile_model(model, "CPU", settings))
        chains: queue.SimpleQueue[_Chain] = queue.SimpleQueue()
        for _ in range(streams):
            chains.put(_Chain(compiled))
        return chains


def _convert(module: nn.Module, example: torch.Tensor) -> Any:
    """An OpenVINO model of `module`; by the front end: `openvino.convert_model` reports each use to its makers."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of torch's tracer
        decoder = TorchScriptPythonDecoder(torch.jit.trace(module, example, check_trace=False))
        front_end = FrontEndManager().load_by_framework("pytorch")
        return front_end.convert(front_end.load(decoder))
