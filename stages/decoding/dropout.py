"""Dropout with few random numbers: on a CPU torch draws one a value, on one core, which takes a fifth of a training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16  # that shares are rounded to: 16 random bits a value


class Dropout(nn.Module):
    """In training, values set to 0 with the probability `share`, the others scaled so that the mean stays as it was.

    Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """

    def __init__(self, share: float) -> None:
        """`share`: 0 to 1, or ValueError; on a CPU its nearest multiple of 1 / 65,536."""
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"{share!r} is no share")
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        """Values [...] -> values [...]; drawn from torch's global generator."""
        if values.device.type != "cpu":
            return F.dropout(values, self.share, self.training)
        kept = _LEVELS - round(self.share * _LEVELS)
        if not self.training or kept == _LEVELS:
            return values
        draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four values each
        levels = draws.view(torch.int16)[: values.numel()].view(values.shape)  # -32,768 to 32,767
        mask = torch.lt(levels, kept - _LEVELS // 2, out=torch.empty_like(values))
        return values * mask.mul_(_LEVELS / max(kept, 1))
