"""Measures the throughput of this machine for each part of the work: a few seconds each, on images drawn in memory."""

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from captionmill.data.images.decode import decode_pixels
from captionmill.data.progress import Progress, no_progress
from captionmill.stages.decoding.config import DecoderConfig
from captionmill.stages.decoding.decoder import Decoder, choose_steps
from captionmill.stages.decoding.search import search_captions
from captionmill.stages.encoding.encoder import Encoder, build_untrained_encoder
from captionmill.stages.encoding.engine import build_engine, encode_batches
from captionmill.stages.encoding.loader import Batch
from captionmill.stages.machine import choose_device, choose_workers
from captionmill.stages.settings import ExtractConfig, SearchConfig, TrainConfig

PHOTO_SIZE = (500, 375)  # pixels, like most images of Flickr8k
_DECODED_IMAGES = 64  # per batch
_VOCAB_SIZE = 2540  # Flickr8k's words that occur five times
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Throughput:
    """Images per second; each part is measured separately, on the whole machine."""

    engine: str
    """Device, engine and precision: "cpu openvino bfloat16"."""
    decoding: float
    """JPEGs of `PHOTO_SIZE` decoded and prepared, on all cores."""
    forward: float
    """Forward passes of the network."""
    captions: float
    """Captions decoded from features by beam search."""


def measure_throughput(
    seconds: float, config: ExtractConfig = ExtractConfig(), *, progress: Progress = no_progress
) -> Throughput:
    """Measure each rate for `seconds`, without the time for preparation.

    The networks have random weights. Captions have the maximum length, so trained decoders are faster.
    """
    encoder = build_untrained_encoder(config)
    progress("measure decoding", 0, 3)
    decoding = _measure_decoding(seconds, encoder, choose_workers(config.workers))
    progress("measure the network", 1, 3)
    engine, forward = _measure_forward(seconds, encoder, config)
    progress("measure captions", 2, 3)
    captions = _caption_rate(seconds, config.device)
    progress("measure captions", 3, 3)
    return Throughput(engine, decoding, forward, captions)


def draw_photo() -> bytes:
    """A JPEG with about the detail of a typical image: enlarged coarse noise with some fine noise on it."""
    generator = np.random.default_rng(0)
    width, height = PHOTO_SIZE
    coarse = Image.fromarray(generator.integers(256, size=(height // 16, width // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(PHOTO_SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + generator.integers(-8, 9, size=smooth.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _measure_decoding(seconds: float, encoder: Encoder, workers: int) -> float:
    photo = draw_photo()

    def decode_some(_: int) -> int:
        done = 0
        while time.monotonic() < ends:
            encoder.prepare(decode_pixels(photo, at_least=encoder.least_size))
            done += 1
        return done

    with ThreadPoolExecutor(workers) as pool:
        started = time.monotonic()
        ends = started + seconds
        count = sum(pool.map(decode_some, range(workers)))
    return count / (time.monotonic() - started)


def _measure_forward(seconds: float, encoder: Encoder, config: ExtractConfig) -> tuple[str, float]:
    engine = build_engine(encoder, config)
    pixels = encoder.prepare(decode_pixels(draw_photo()))
    keys = [str(number) for number in range(engine.batch_size)]
    batch = Batch(keys=keys, images=[pixels] * len(keys))
    engine.submit(batch.images)()  # compiles and reserves memory
    ends = time.monotonic() + seconds

    def batches() -> Iterator[Batch]:
        yield batch
        while time.monotonic() < ends:
            yield batch

    started = time.monotonic()
    count = sum(len(rows) for _, rows in encode_batches(engine, batches()))
    return engine.description, count / (time.monotonic() - started)


def _caption_rate(seconds: float, device_name: str) -> float:
    device = choose_device(device_name)
    search = SearchConfig()
    decoder = Decoder(DecoderConfig.of(TrainConfig(), feature_dim=2048, vocab_size=_VOCAB_SIZE))
    steps = choose_steps(decoder.to(device))
    features = np.random.default_rng(0).standard_normal((_DECODED_IMAGES, 2048), dtype=np.float32)

    search_captions(steps, features, search)  # reserves memory
    started, count = time.monotonic(), 0
    while not count or time.monotonic() - started < seconds:
        count += len(search_captions(steps, features, search))
    return count / (time.monotonic() - started)
