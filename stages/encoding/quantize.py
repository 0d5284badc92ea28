"""Quantises a network to 8 bits from its batch norms only: without images, the result depends on the weights only.

A batch norm holds, for each channel, the mean and the standard deviation of its output over the images that the network
was trained on. From these follow the ranges of all activations, and the mean error of rounded weights, which is
subtracted (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019).
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import Bottleneck

from captionmill.stages.encoding.network import FeatureNetwork, feed_whole_numbers

_RANGE = 5.0
"""Standard deviations above its mean up to which an activation is not clipped: with 4 or 8 the features are further
from float32 (ResNet-50, mean cosine over 64 images: 0.986 with 5, 0.982 with 4, 0.983 with 8)."""
_LARGEST_OF_3 = (0.85, 0.75)  # mean and standard deviation of the largest of three values of a normal distribution


def quantize(network: FeatureNetwork) -> FeatureNetwork:
    """A copy of `network` that rounds the weights and the inputs of its convolutions to 256 levels, but of the first.

    What rounds them are the operations from which OpenVINO knows that it may compute in 8 bits.
    """
    network = feed_whole_numbers(network)
    first, norm, relu, pool, *stages = network.layers
    layers = [first, norm, relu, pool]
    maps = _Maps.of(first)
    maps = _Maps(maps.mean + _LARGEST_OF_3[0] * maps.std, _LARGEST_OF_3[1] * maps.std)  # after the maximum pooling
    for block in (block for stage in stages for block in stage.children()):
        layers += [_RoundedMaps(maps), block]
        maps = _quantize_block(block, maps)
    network.layers = nn.Sequential(*layers)
    return network.requires_grad_(False)


class _Maps(NamedTuple):
    """Mean and standard deviation [C] of the channels of feature maps, before ReLU."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, convolution: nn.Module) -> Self:
        """Of the output of a convolution whose batch norm is folded into it."""
        mean, std = convolution.get_buffer("output_moments")
        return cls(mean, std)

    def rectified(self) -> "_Maps":
        """After ReLU, of normal distributions."""
        std = self.std.clamp(min=1e-6)
        ratio = self.mean / std
        density, share = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(ratio)
        mean = self.mean * share + std * density
        square = (self.mean**2 + std**2) * share + self.mean * std * density
        return _Maps(mean, (square - mean**2).clamp(min=0).sqrt())


def _quantize_block(block: Bottleneck, maps: _Maps) -> _Maps:
    """Quantise `block`, which gets `maps` after ReLU; returns its output, before ReLU."""
    inner, outer, last = (_Maps.of(convolution) for convolution in (block.conv1, block.conv2, block.conv3))
    skipped = maps.rectified()
    if block.downsample is not None:
        convolution = block.downsample[0]
        skipped = _Maps.of(convolution)
        block.downsample = _RoundedConvolution(convolution, maps)
    block.conv1 = _RoundedConvolution(block.conv1, maps)
    block.conv2 = nn.Sequential(_RoundedMaps(inner), _RoundedConvolution(block.conv2, inner))
    block.conv3 = nn.Sequential(_RoundedMaps(outer), _RoundedConvolution(block.conv3, outer))
    return _Maps(last.mean + skipped.mean, (last.std**2 + skipped.std**2).sqrt())


class _RoundedMaps(nn.Module):
    """Feature maps after ReLU, in 256 levels of one range."""

    def __init__(self, maps: _Maps) -> None:
        super().__init__()
        self.step = float((maps.mean + _RANGE * maps.std).max()) / 255

    def forward(self, maps: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(maps, self.step, 0, 0, 255)


class _RoundedConvolution(nn.Module):
    """A convolution whose weights have 255 levels of a range for each output channel."""

    steps: Tensor
    zeros: Tensor

    def __init__(self, convolution: nn.Conv2d, inputs: _Maps) -> None:
        """`inputs` are what it gets, before ReLU."""
        super().__init__()
        self.convolution = convolution
        weight = convolution.weight
        steps = weight.detach().abs().amax((1, 2, 3)) / 127
        self.register_buffer("steps", steps.clamp(min=torch.finfo(steps.dtype).tiny))
        self.register_buffer("zeros", torch.zeros(len(steps), dtype=torch.int32))
        with torch.no_grad():
            assert convolution.bias is not None  # that of the folded batch norm
            convolution.bias -= (self._rounded() - weight).sum((2, 3)) @ inputs.rectified().mean

    def forward(self, maps: Tensor) -> Tensor:
        one = self.convolution
        return functional.conv2d(maps, self._rounded(), one.bias, one.stride, one.padding, one.dilation, one.groups)

    def _rounded(self) -> Tensor:
        return torch.fake_quantize_per_channel_affine(self.convolution.weight, self.steps, self.zeros, 0, -127, 127)
