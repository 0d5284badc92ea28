"""The encoder and the decoder as networks for other programs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from captionmill.data.errors import InputError
from captionmill.stages.decoding.decoder import Decoder
from captionmill.stages.decoding.ensemble import Ensemble
from captionmill.stages.decoding.search import State
from captionmill.stages.encoding.encoder import STRIDE, Encoder
from captionmill.stages.portable.file import Port, PortableNetwork

_PARTS = ("hidden", "cell", "image")  # of a state, in the order of `State`
_CHECKED_SIZES: tuple[Mapping[str, int], ...] = tuple({"batch": size} for size in (3, 1, 2, 17))


def portable_decoder(decoder: Decoder | Ensemble) -> tuple[PortableNetwork, PortableNetwork]:
    """The networks "decoder_start" and "decoder_step" of `decoder`, which is moved to the CPU.

    The parts of the state are called hidden, cell and, if the image is fed in with every word, image; for an ensemble
    hidden_1, cell_1, hidden_2 and so on. An ensemble's logits are logarithms of probabilities.
    """
    decoder.cpu().eval()
    decoders = [part for part in decoder.modules() if isinstance(part, Decoder)]
    config = decoders[0].config
    with torch.inference_mode():
        states = [single.start(torch.zeros(1, config.feature_dim)) for single in decoders]
    ports = [
        Port(name if len(states) == 1 else f"{name}_{number}", "float32", (len(part), "batch", part.shape[2]))
        for number, state in enumerate(states, 1)
        for name, part in zip(_PARTS, state, strict=False)
    ]
    start = PortableNetwork(
        "decoder_start",
        _Start(decoder),
        (Port("features", "float32", ("batch", config.feature_dim)),),
        tuple(ports),
        _CHECKED_SIZES,
    )
    step = PortableNetwork(
        "decoder_step",
        _Step(decoder),
        (Port("words", "int64", ("batch",), below=config.vocab_size), *ports),
        (
            Port("logits", "float32", ("batch", config.vocab_size)),
            *(Port(f"next_{port.name}", port.dtype, port.shape) for port in ports),
        ),
        _CHECKED_SIZES,
    )
    return start, step


class _Start(nn.Module):
    def __init__(self, decoder: Decoder | Ensemble) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor) -> State:
        return self.decoder.start(features)


class _Step(nn.Module):
    def __init__(self, decoder: Decoder | Ensemble) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, words: Tensor, *state: Tensor) -> State:
        logits, state = self.decoder.step(words, state)
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
        _Views(encoder.network.cpu().float().eval(), mirrored=spec.views in ("flip", "two")),
        (Port("pixels", "uint8", ("batch", *sides, 3)),),
        (Port("features", "float32", ("batch", spec.feature_dim)),),
        tuple(
            {"batch": batch, "height": size if batch < 3 else longer[0], "width": width}
            for batch, width in zip((2, 1, 3), longer, strict=True)
        ),
    )


class _Views(nn.Module):
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
