"""The network in torch: on CUDA and Apple GPUs, and on a CPU if nothing faster is installed."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from captionmill.data.features.file import Features
from captionmill.data.images.decode import Pixels
from captionmill.stages.encoding.encoder import Encoder
from captionmill.stages.encoding.network import feed_whole_numbers
from captionmill.stages.machine import choose_device, choose_precision, without_tf32
from captionmill.stages.settings import ExtractConfig

_BATCH_SIZE = 32
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """An encoder's network on one device, channels last; an `Engine`.

    On CUDA, copying a batch overlaps with computing the previous one.
    """

    def __init__(self, encoder: Encoder, config: ExtractConfig) -> None:
        """Move the network to the device that `config` names; InputError if this machine does not have it."""
        self._device = choose_device(config.device)
        dtype = _DTYPES[choose_precision(config.precision, self._device.type)]
        if dtype == torch.float32:
            without_tf32()
        self.batch_size = config.batch_size or _BATCH_SIZE
        self.depth = 3 if self._device.type == "cuda" else 1
        self.description = f"{self._device} torch {str(dtype).removeprefix('torch.')}"
        network = encoder.network if dtype == torch.float32 else feed_whole_numbers(encoder.network)
        network.to(self._device, dtype).to(memory_format=torch.channels_last)
        self._network: Callable[[Tensor], Tensor] = torch.compile(network) if config.compile else network
        self._copies = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def submit(self, images: Sequence[Pixels]) -> Callable[[], Features]:
        """Start on B uint8 images [H, W, 3]; the result waits for their rows, [B, D] float32."""
        count = len(images)
        pixels = np.stack([*images, *[np.zeros_like(images[0])] * (self.batch_size - count)])
        with torch.inference_mode():
            if self._copies is None:
                rows: Features = self._network(torch.from_numpy(pixels).to(self._device)).cpu().numpy()
                return lambda: rows[:count]
            with torch.cuda.device(self._device):  # or pinned memory would take up memory of the first device too
                with torch.cuda.stream(self._copies):
                    batch = torch.from_numpy(pixels).pin_memory().to(self._device, non_blocking=True)
                compute = torch.cuda.current_stream(self._device)
                compute.wait_stream(self._copies)
                batch.record_stream(compute)
                features = self._network(batch)
                host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
                host.copy_(features, non_blocking=True)
                done = torch.cuda.Event()
                done.record(compute)

        def wait() -> Features:
            done.synchronize()
            copied: Features = host[:count].numpy().copy()
            return copied

        return wait
