"""An encoder as a network for other programs: pictures, prepared as its spec says -> features."""

from torch import Tensor, nn

from captionmill.stages.encoding.encoder import STRIDE, Encoder
from captionmill.stages.network_file import Port, PortableNetwork


def portable_encoder(encoder: Encoder) -> PortableNetwork:
    """The network "encoder" of `encoder`: [B, H, W, 3] uint8 RGB -> [B, 2048], the mean of the views that it takes.

    H and W are the image size; for "whole" they are free.
    """
    spec = encoder.spec
    size = spec.image_size
    is_whole = spec.preprocess == "whole"
    sides: tuple[int | str, ...] = ("height", "width") if is_whole else (size, size)
    longer = [size + STRIDE, size, size] if is_whole else [size] * 3
    return PortableNetwork(
        "encoder",
        _Views(encoder.network.cpu().float().eval(), mirrored=spec.views == "flip"),
        (Port("pixels", "uint8", ("batch", *sides, 3)),),
        (Port("features", "float32", ("batch", spec.feature_dim)),),
        tuple(
            {"batch": batch, "height": size if batch < 3 else longer[0], "width": width}
            for batch, width in zip((2, 1, 3), longer, strict=True)
        ),
    )


class _Views(nn.Module):
    """The features of a picture, or the mean of those of the picture and its mirror."""

    def __init__(self, network: nn.Module, *, mirrored: bool) -> None:
        super().__init__()
        self.network = network
        self.mirrored = mirrored

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(pixels)
        if self.mirrored:
            features = (features + self.network(pixels.flip(2))) / 2
        return features
