"""Small real parts for the tests: a thin ResNet's weights, a folder of pictures."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from builders import COLOURS
from PIL import Image
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def thin_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the demo's backbone, as a .safetensors file."""
    torch.manual_seed(0)
    network = ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=8)
    path = tmp_path_factory.mktemp("weights") / "thin.safetensors"
    safetensors.torch.save_file({k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight one-coloured pictures, two of each colour, and one file that is no picture."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, (name, colour) in enumerate([*COLOURS.items(), *COLOURS.items()]):
        path = folder / ("more" if number % 2 else "") / f"{name}_{number}.{'png' if number < 4 else 'JPG'}"
        Image.new("RGB", (40 + number, 30), colour).save(path, "PNG" if number < 4 else "JPEG")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    return folder
