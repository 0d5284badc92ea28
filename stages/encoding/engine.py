"""Runs an encoder's network fast on this machine: batches of uint8 squares in, rows of features out."""

import numpy as np
import torch

from captionmill.data.feature_store import Features
from captionmill.stages.config import Precision
from captionmill.stages.encoding.encoder import Encoder, Pixels
from captionmill.stages.runtime import choose_device, choose_dtype


class TorchEngine:
    """An encoder's network on one device, in one precision, channels last."""

    def __init__(self, encoder: Encoder, *, device: str, precision: Precision) -> None:
        """Move the network to `device`; InputError if this machine has none such."""
        self.device = choose_device(device)
        self.dtype = choose_dtype(precision, self.device)
        self._network = encoder.network.to(self.device).to(memory_format=torch.channels_last)
        self._network.get_submodule("network").to(self.dtype)

    @property
    def description(self) -> str:
        """Device and arithmetic, for people: "cpu bfloat16"."""
        return f"{self.device} {str(self.dtype).removeprefix('torch.')}"

    def encode(self, pixels: Pixels) -> Features:
        """The features of a batch: [B, S, S, 3] uint8 -> [B, D] float32."""
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)  # channels last in memory as it is
            features: Features = self._network(batch).float().cpu().numpy()
        return np.ascontiguousarray(features)
