"""The encoder and the decoder as networks for other programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from captionmill.data.errors import InputError
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.ensemble import join_decoders
from captionmill.stages.decoding.search import State
from captionmill.stages.encoding.encoder import STRIDE, Encoder
from captionmill.stages.portable.file import Port, PortableNetwork

_CHECKED_SIZES: tuple[Mapping[str, int], ...] = tuple({"batch": size} for size in (3, 1, 2, 17))


def portable_decoder(decoders: Sequence[Decoder]) -> tuple[PortableNetwork, PortableNetwork]:
    """The networks "decoder_start" and "decoder_step" of `decoders`, which are on the CPU, in evaluation mode.

    The parts of the state are called hidden, cell and, if the image is fed in with every word, image; for an ensemble
    hidden_1, cell_1, hidden_2 and so on. An ensemble's logits are logarithms of probabilities.
    """
    config = decoders[0].config
    ports = [
        Port(
            name if len(decoders) == 1 else f"{name}_{number}",
            "float32",
            (1, "batch", own.embed_dim) if name == "image" else (own.layers, "batch", own.hidden_dim),
        )
        for number, own in enumerate((decoder.config for decoder in decoders), 1)
        for name in own.state_parts
    ]
    start = PortableNetwork(
        "decoder_start",
        _StartNetwork(decoders),
        (Port("features", "float32", ("batch", config.feature_dim)),),
        tuple(ports),
        _CHECKED_SIZES,
    )
    step = PortableNetwork(
        "decoder_step",
        _StepNetwork(decoders),
        (Port("words", "int64", ("batch",), below=config.vocab_size), *ports),
        (
            Port("logits", "float32", ("batch", config.vocab_size)),
            *(Port(f"next_{port.name}", port.dtype, port.shape) for port in ports),
        ),
        _CHECKED_SIZES,
    )
    return start, step


class _Decoders(nn.Module):
    def __init__(self, decoders: Sequence[Decoder]) -> None:
        super().__init__()
        self.decoders: Any = nn.ModuleList(decoders)  # a sequence of them


class _StartNetwork(_Decoders):
    def forward(self, features: Tensor) -> State:
        return join_decoders(self.decoders).start(features)


class _StepNetwork(_Decoders):
    def forward(self, words: Tensor, *state: Tensor) -> State:
        logits, state = join_decoders(self.decoders).step(words, state)
        return logits, *state


def portable_encoder(encoder: Encoder) -> PortableNetwork:
    """The network "encoder" of `encoder`: [B, H, W, 3] uint8 RGB -> [B, 2048], the mean of the views that it takes.

    H and W are the image size; for "whole" they are free. Raises InputError for views that need crops of the image.
    """
    spec = encoder.spec
    if spec.views == "six":
        raise InputError("the encoder of a model with `views` six cannot be exported: leave it out (`with_encoder`)")
    size = spec.image_size
    is_whole = spec.preprocess == "whole"
    sides: tuple[int | str, ...] = ("height", "width") if is_whole else (size, size)
    longer = [size + STRIDE, size, size] if is_whole else [size] * 3
    return PortableNetwork(
        "encoder",
        _ViewsNetwork(encoder.network.cpu().float().eval(), mirrored=spec.views in ("flip", "two")),
        (Port("pixels", "uint8", ("batch", *sides, 3)),),
        (Port("features", "float32", ("batch", spec.feature_dim)),),
        tuple(
            {"batch": batch, "height": size if batch < 3 else longer[0], "width": width}
            for batch, width in zip((2, 1, 3), longer, strict=True)
        ),
    )


class _ViewsNetwork(nn.Module):
    """The features of an image, or the mean of those of the image and its mirror image."""

    def __init__(self, network: nn.Module, *, mirrored: bool) -> None:
        super().__init__()
        self.network = network
        self.mirrored = mirrored

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(pixels)
        if self.mirrored:
            features = (features + self.network(pixels.flip(2))) / 2
        return features
