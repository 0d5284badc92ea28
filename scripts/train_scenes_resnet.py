"""Remake stages/encoding/assets/scenes_resnet14_thin.safetensors, the tiny ResNet of the offline demo.

The asset is `torchvision.models.resnet.ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=5)` without its classifier:
14 layers counted as in the paper (arXiv 1512.03385: the stem, 4 x 3 convolutions, the linear head), 2048 numbers out,
its weights and batch-norm statistics in fp16. It was trained from nothing on scenes drawn by
`pipeline/demo/scenes.py`, so it knows these scenes and nothing else. It was made, in 17 minutes on one busy core, by

    python scripts/train_scenes_resnet.py --threads 1

which read 99.9 % of 2,000 held-out scenes wholly right, with weights in fp32 and in fp16 alike.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from joblib import Parallel, delayed
from PIL import Image
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy
from torchvision.models.resnet import Bottleneck, ResNet

from captionmill.data.files import replace_atomically
from captionmill.pipeline.demo.scene_captions import COLOURS, PLACES, SHAPES, SIZES, Scene, random_scene
from captionmill.pipeline.demo.scenes import JPEG_QUALITY, draw_scene

ASSET_PATH = Path(__file__).resolve().parents[1] / "stages" / "encoding" / "assets" / "scenes_resnet14_thin.safetensors"
WIDTH_PER_GROUP = 5  # 5,992,802 bytes; 6 makes 6,075,024, more than the 6,000,000 that fit
INPUT_SIZE = 128
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
# One question a part of the scene: background, then colour and shape of the small and of the large object (0: none)
ANSWER_COUNTS = (len(PLACES), *(len(COLOURS) + 1, len(SHAPES) + 1) * len(SIZES))


def main() -> None:
    """Draw, train, write, and print the share of held-out scenes that a linear head reads wholly right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ASSET_PATH, help="safetensors file to write")
    parser.add_argument("--seed", type=int, default=20_000, help="of weights and images; the demo's must differ")
    parser.add_argument("--steps", type=int, default=3600, help="batches, the first third of them at half the size")
    parser.add_argument("--batch-size", type=int, default=32, help="images per step")
    parser.add_argument("--images", type=int, default=16_000, help="training images, 49 KB of memory each")
    parser.add_argument("--threads", type=int, default=2, help="processor threads, and processes that draw")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    started_s = time.perf_counter()
    images, answers = draw_images(options.images, options.seed, options.threads)
    print(f"drew {len(images)} images in {time.perf_counter() - started_s:.0f} s", flush=True)
    network, head = build_network(), nn.Linear(2048, sum(ANSWER_COUNTS))
    train(network, head, images, answers, steps=options.steps, batch_size=options.batch_size)
    print(f"trained {options.steps} steps, {time.perf_counter() - started_s:.0f} s since the start", flush=True)

    held_out, held_out_answers = draw_images(2000, options.seed + 1, options.threads)
    print(f"held-out scenes wholly right, fp32: {measure(network, head, held_out, held_out_answers):.4f}")
    write_weights(network, options.output)
    network = build_network()
    network.load_state_dict(load_file(options.output))
    print(f"held-out scenes wholly right, fp16 weights: {measure(network, head, held_out, held_out_answers):.4f}")
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


def build_network() -> nn.Module:
    """The thin ResNet without its classifier: (B, 3, 128, 128) in, (B, 2048) out."""
    network: nn.Module = ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=WIDTH_PER_GROUP)
    network.fc = nn.Identity()
    return network.to(memory_format=torch.channels_last)


def write_weights(network: nn.Module, path: Path) -> None:
    """Write the weights and batch-norm statistics in fp16, the counts of batches seen as they are."""
    weights = {
        name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()
    }
    with replace_atomically(path) as partial_path:
        partial_path.write_bytes(save({name: value.contiguous() for name, value in weights.items()}))


def draw_images(count: int, seed: int, workers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as the encoder sees them before scaling, (N, 3, 128, 128) uint8, and their answers, (N, 5)."""
    chunk = 200
    drawn = Parallel(n_jobs=workers)(
        delayed(_draw_chunk)(seed, start, min(start + chunk, count)) for start in range(0, count, chunk)
    )
    images = torch.cat([torch.from_numpy(pixels) for pixels, _ in drawn])  # (N, 128, 128, 3)
    return images.permute(0, 3, 1, 2), torch.cat([torch.tensor(answers) for _, answers in drawn])


def train(
    network: nn.Module,
    head: nn.Module,
    images: torch.Tensor,
    answers: torch.Tensor,
    *,
    steps: int,
    batch_size: int,
) -> None:
    """Train both on cross-entropy over the five answers; half of the images are mirrored, which changes no answer."""
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.2)
    network.train()
    started_s = time.perf_counter()
    for step in range(steps):
        if step * batch_size % len(images) < batch_size:
            order = torch.randperm(len(images))
        offset = step * batch_size % (len(images) - batch_size + 1)
        chosen = order[offset : offset + batch_size]
        batch = _normalise(images[chosen])
        if torch.rand(()) < 0.5:
            batch = batch.flip(3)
        if step < steps // 3:  # a third of the time per step
            batch = avg_pool2d(batch, 2)
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(network(batch)).float()
        loss = sum_losses(logits, answers[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            right = _find_right(logits, answers[chosen]).float().mean()
            elapsed_s = time.perf_counter() - started_s
            print(f"step {step}  loss {loss.item():.3f}  whole scenes {right:.3f}  {elapsed_s:.0f} s", flush=True)


def sum_losses(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """The sum of the five cross-entropies, each averaged over the batch."""
    parts = logits.split(ANSWER_COUNTS, dim=1)
    losses = [cross_entropy(part, answers[:, question]) for question, part in enumerate(parts)]
    return torch.stack(losses).sum()


@torch.inference_mode()
def measure(network: nn.Module, head: nn.Module, images: torch.Tensor, answers: torch.Tensor) -> float:
    """The share of images with all five answers right, in fp32."""
    network.eval()
    right = [
        _find_right(head(network(_normalise(batch))), batch_answers)
        for batch, batch_answers in zip(images.split(32), answers.split(32), strict=True)
    ]
    return torch.cat(right).float().mean().item()


def _find_right(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    said = torch.stack([part.argmax(1) for part in logits.split(ANSWER_COUNTS, dim=1)], dim=1)  # (B, 5)
    return (said == answers).all(1)


def _normalise(images: torch.Tensor) -> torch.Tensor:
    scaled = images.float().div(255).sub(MEAN).div(STD)
    return scaled.contiguous(memory_format=torch.channels_last)


def _draw_chunk(seed: int, start: int, stop: int) -> tuple[npt.NDArray[np.uint8], list[list[int]]]:
    pixels, answers = [], []
    for index in range(start, stop):
        rng = np.random.default_rng([seed, index])
        scene = random_scene(rng)
        image = draw_scene(scene, rng)
        if index % 2:
            image = _compress(image)
        pixels.append(np.asarray(image.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BILINEAR)))
        answers.append(_answer(scene))
    return np.stack(pixels), answers


def _compress(image: Image.Image) -> Image.Image:
    """The image after it was a JPEG file, as half of the demo's are."""
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=JPEG_QUALITY)
    return Image.open(packed).convert("RGB")


def _answer(scene: Scene) -> list[int]:
    answers = [list(PLACES).index(scene.background)]
    for size in SIZES:
        found = [scene_object for scene_object in scene.objects if scene_object.size == size]
        answers.append(COLOURS.index(found[0].colour) + 1 if found else 0)
        answers.append(list(SHAPES).index(found[0].shape) + 1 if found else 0)
    return answers


if __name__ == "__main__":
    main()
