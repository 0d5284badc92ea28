"""A network as one ONNX file that runs without captionmill, and the proof that it computes the same."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from captionmill.data.errors import ExportError, InputError
from captionmill.data.optional import missing_line, missing_packages

Array = npt.NDArray[Any]

SUFFIX = ".onnx"
TOLERANCE = 1e-4
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Port:
    """A tensor that goes into a network or comes out of it."""

    name: str
    dtype: str
    """float32, int64 or uint8."""
    shape: tuple[int | str, ...]
    """A name stands for a size that is free."""
    below: int = 256
    """Whole numbers are below this and not negative."""

    def random(self, sizes: Mapping[str, int], generator: np.random.Generator) -> Array:
        """Values of the right kind, each free size that of its name in `sizes`."""
        shape = [sizes[size] if isinstance(size, str) else size for size in self.shape]
        if self.dtype == "float32":
            return generator.standard_normal(shape, dtype=np.float32)
        return generator.integers(self.below, size=shape).astype(self.dtype)


@dataclass(frozen=True)
class PortableNetwork:
    """What can be written to a file: tensors in, tensors out, in evaluation mode and on the CPU."""

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    checked_sizes: tuple[Mapping[str, int], ...]
    """Values of the free sizes to compare at; an export is traced at the first, whose sizes must be more than 1."""


def require_packages() -> None:
    """Raise InputError if this machine lacks what writes and runs such files."""
    if missing := missing_packages(*_ONNX_PACKAGES):
        raise InputError(missing_line(missing, extra="onnx", needed_by="an export"))


def write_network(network: PortableNetwork, path: Path) -> float:
    """Write `network` to `path` and compare it there with torch; how far its numbers are off at most.

    Random inputs, at each of its `checked_sizes`. What counts is the largest absolute difference, where an output has
    numbers above 1 divided by its largest. Raises ExportError if that is above `TOLERANCE`.
    """
    generator = np.random.default_rng(0)
    example = [torch.from_numpy(port.random(network.checked_sizes[0], generator)) for port in network.inputs]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's exporter
        _write_onnx(network, _Positional(network.module).eval(), example, path)
    run = open_network(path)
    differences = []
    for sizes in network.checked_sizes:
        arrays = [port.random(sizes, generator) for port in network.inputs]
        with torch.inference_mode():
            outputs = network.module(*map(torch.from_numpy, arrays))
        expected = outputs if isinstance(outputs, tuple) else (outputs,)
        differences += [_difference(*pair) for pair in zip(run(*arrays), expected, strict=True)]
    largest = float(np.max(differences))  # nan if any is
    if not largest <= TOLERANCE:
        raise ExportError(
            f"{network.name}: the ONNX file computes other numbers than torch (off by {largest:.2g}, allowed "
            f"is {TOLERANCE:g}); nothing was exported. Please report this with your versions of torch and onnx"
        )
    return largest


def open_network(path: Path) -> Callable[..., list[Array]]:
    """The network in `path` as a function from its inputs to its outputs, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(*inputs: Array) -> list[Array]:
        outputs: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
        return outputs

    return run


class _Positional(nn.Module):
    """The same network with all inputs in one list, so that one form of `dynamic_shapes` fits all."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def _write_onnx(network: PortableNetwork, module: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    import onnx

    names = {size for port in network.inputs for size in port.shape if isinstance(size, str)}
    dims = {name: torch.export.Dim(name) for name in names}
    free = [
        {axis: dims[size] for axis, size in enumerate(port.shape) if isinstance(size, str)} for port in network.inputs
    ]
    program = torch.onnx.export(
        module,
        tuple(example),
        dynamo=True,
        verbose=False,
        dynamic_shapes=(tuple(free),),
        input_names=[port.name for port in network.inputs],
        output_names=[port.name for port in network.outputs],
    )
    assert program is not None  # for mypy: only the old exporter returns None
    model = program.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # torch records the folders of its source files and of ours
        part.doc_string = ""
    onnx.save_model(model, path)


def _difference(actual: Array, expected: Tensor) -> float:
    if actual.shape != tuple(expected.shape):
        return float("inf")
    wanted = expected.numpy()
    return float(np.abs(actual - wanted).max() / max(1.0, np.abs(wanted).max()))
