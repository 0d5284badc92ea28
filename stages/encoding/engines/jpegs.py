"""JPEGs that a CUDA device decodes and resizes, in groups. Each is compared with what the CPU has read of it.

nvJPEG shows neither truncated data nor wrong codes, and may return an image that it has not written. So the CPU reads
every code first, which gives the image at an eighth of its size (`check_pixels`), and an image whose means over 8 x 8
pixels are not those of that eighth is refused. What is left to the device, above all resizing, is most of the work.
"""

import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from captionmill.data.errors import InputError, one_line
from captionmill.data.features.spec import GPU_JPEGS
from captionmill.data.images.decode import Pixels, check_pixels
from captionmill.data.images.formats.jpeg import CheckedJpeg
from captionmill.stages.encoding.encoder import CropBox, Encoder, Size
from captionmill.stages.machine import is_out_of_memory

_MEAN_APART, _MOST_APART = 4.0, 40.0
"""Levels by which blocks may differ: decoders that round and enlarge colours otherwise reach 1.2 and 11 (Flickr8k)."""
_RESIZED_LIMIT = 4_000_000  # pixels: an image of 100 x 30,000 would become one of 256 x 76,800
_logger = logging.getLogger(__name__)


class JpegDecoder:
    """Decodes and prepares JPEGs on one device as `encoder` does, except for rounding and how colours are enlarged."""

    description = GPU_JPEGS

    def __init__(self, encoder: Encoder, device: torch.device) -> None:
        """Raises InputError if torchvision has no decoder for `device`."""
        self._encoder, self._device, self._has_warned = encoder, device, False
        # not the stream of the network, whose batches under way it would wait for
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        jpeg = check_pixels(_draw_jpeg(), at_least=lambda *size: size)
        try:
            with self._on_device():
                works = jpeg is not None and self._is_same(_decode_on_device([jpeg.data], device)[0].float(), jpeg)
        except (ImportError, RuntimeError, TypeError) as exc:
            reason = one_line(exc)[:200]
            raise InputError(
                f"`decode` gpu: torchvision cannot decode on {device} ({reason}): use `decode` cpu"
            ) from exc
        if not works:
            raise InputError(f"`decode` gpu: torchvision decodes to wrong images on {device}: use `decode` cpu")

    def __call__(self, jpegs: Sequence[CheckedJpeg]) -> list[Pixels | None]:
        """The network's inputs for each of `jpegs`, [H, W, 3]; None for one that the CPU has to decode."""
        with torch.inference_mode(), self._on_device():
            images = self._decode_each(jpegs)
            found = [
                None if image is None else self._prepare(image, jpeg) for image, jpeg in zip(images, jpegs, strict=True)
            ]
        if (refused := sum(pixels is None for pixels in found)) and not self._has_warned:
            self._has_warned = True
            _logger.warning("the GPU refused %d of %d JPEGs, which the CPU decodes", refused, len(found))
        return found

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def _decode_each(self, jpegs: Sequence[CheckedJpeg]) -> list[Tensor | None]:
        """[3, H, W] uint8 on the device; torchvision fails for all of them if one cannot be decoded."""
        try:
            return list(_decode_on_device([jpeg.data for jpeg in jpegs], self._device))
        except RuntimeError:
            if len(jpegs) == 1:
                return [None]
        half = len(jpegs) // 2
        return self._decode_each(jpegs[:half]) + self._decode_each(jpegs[half:])

    def _prepare(self, image: Tensor, jpeg: CheckedJpeg) -> Pixels | None:
        """The network's inputs for `image`, [3, H, W] uint8; None if it is wrong or too large for the device."""
        width, height = self._encoder.least_size(*jpeg.size)
        try:
            levels = image.float()
            if width * height > _RESIZED_LIMIT or not self._is_same(levels, jpeg):
                return None
            return self._encoder.prepare(cast(Pixels, levels.permute(1, 2, 0)), _resize_on_device)
        except RuntimeError as exc:
            if not is_out_of_memory(exc):
                raise
            return None

    def _is_same(self, image: Tensor, jpeg: CheckedJpeg) -> bool:
        """Whether `image`, [3, H, W] float32, is that of `jpeg`, as far as an eighth of it shows."""
        width, height = jpeg.size
        if image.shape != (3, height, width):
            return False
        blocks = functional.avg_pool2d(image, 8)  # [3, H // 8, W // 8]
        eighth = torch.from_numpy(jpeg.eighth[: height // 8, : width // 8]).to(self._device).permute(2, 0, 1)
        apart = (blocks - eighth).abs()
        return bool((apart.mean() <= _MEAN_APART) & (apart.max() <= _MOST_APART))


def _draw_jpeg() -> bytes:
    """A JPEG to try a decoder with."""
    across, ring = Image.linear_gradient("L"), Image.radial_gradient("L")
    file = io.BytesIO()
    Image.merge("RGB", (across, ring, across.transpose(Image.Transpose.ROTATE_90))).save(file, "JPEG")
    return file.getvalue()


def _decode_on_device(contents: Sequence[bytes], device: torch.device) -> list[Tensor]:
    """[3, H, W] uint8 RGB on `device`; RuntimeError if one of the files cannot be decoded there."""
    from torchvision.io import ImageReadMode, decode_jpeg

    files = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a later torchvision will have no decoder: `JpegDecoder` reports that
        images: list[Tensor] = decode_jpeg(files, ImageReadMode.RGB, device)
    return images


def _resize_on_device(image: Tensor, size: Size, box: CropBox) -> Pixels:
    """The `box` of an image [H, W, 3] of float32 levels, resized; antialiased as by Pillow, to within one level."""
    if image.shape[:2] != size[::-1]:
        pixels = image.permute(2, 0, 1)[None]
        image = functional.interpolate(pixels, size[::-1], mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    left, top, right, bottom = box
    kept = image[top:bottom, left:right].round().clamp(0, 255)
    resized: Pixels = kept.to(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(resized)
