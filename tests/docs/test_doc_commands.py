"""Every command in the documents is run here, in order and over small drawn data, or is marked with what it needs.

A page's fenced blocks of `bash` and `python` are run in one folder; a block with a title is the file of that name. A
block under `<!-- needs: ... -->`, or in a page with `<!-- all need: ... -->`, is not run, but its commands and options
exist.
"""

import os
import re
import shlex
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torchvision.models import get_model_weights

from captionmill.cli import main
from captionmill.pipeline.demo.scenes import draw_samples
from captionmill.pipeline.plan.jobs import TrainJob
from captionmill.pipeline.plan.read import read_plan
from captionmill.stages.encoding.weights import SCENES_WEIGHTS_PATH
from captionmill.stages.settings import Backbone

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
PAGES.remove("docs/cli.md")  # written by the program

NEEDS = {"download", "install", "cluster", "time", "edit"}

APPENDED = {  # to each of these commands, instead of the page's own values
    "extract": "--backbone scenes-resnet14 --image-size 32 --engine torch --precision fp32",
    "train": "--max-epochs 1 --embed-dim 8 --hidden-dim 8 --min-count 1 --batch-size 64",
    "evaluate": "--resamples 20",
    "caption": "--engine torch --precision fp32",
}
REPLACED = {  # in files, commands and Python
    "--jobs 2": "--jobs 1",
    "[extract]\n": '[extract]\nbackbone = "scenes-resnet14"\nimage_size = 32\nengine = "torch"\n',
    "max_epochs = 6": "max_epochs = 1\nembed_dim = 8\nhidden_dim = 8\nmin_count = 1",
    "ExtractConfig(workers": 'ExtractConfig("scenes-resnet14", image_size=32, engine="torch", workers',
    "max_epochs=8": "max_epochs=1, embed_dim=8, hidden_dim=8",
}
STAND_INS = {  # what lies in the folder before a page's first command
    "README.md": ("photos", "captions.csv", "new-photos"),
    "docs/tutorial.md": ("Flickr8k", "my-photos"),
    "docs/api.md": ("photos", "captions.csv"),
    "docs/scale.md": ("photos",),
    "docs/how-to/own-captions.md": ("my-photos", "new-photos"),
    "docs/how-to/review.md": ("photos", "model"),
    "docs/how-to/correct-and-train.md": ("photos", "model"),
    "docs/how-to/air-gapped.md": ("photos", "model", "resnet50-0676ba61.pth"),
    "docs/how-to/slurm.md": ("photos", "model"),
    "docs/how-to/dask.md": ("features.h5",),
    "docs/how-to/million-images.md": ("photos", "shards"),
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    title: str
    text: str
    needs: str
    """What it is marked with; "" if it is to be run."""

    @property
    def lines(self) -> list[str]:
        """The commands of a shell's block, each in one line, without comments."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]


_ALL_NEED = re.compile(r"^<!-- all need: (\w+) -->$", re.M)
_BLOCK = re.compile(r'^(?:<!-- needs: (\w+) -->\n)?```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    all_need = "".join(_ALL_NEED.findall(text))
    found = _BLOCK.findall(text)
    return [Block(page, language, title, body, needs or all_need) for needs, language, title, body in found]


def small(text: str) -> str:
    for words, replacement in REPLACED.items():
        text = text.replace(words, replacement)
    return text


def run_line(line: str) -> None:
    """A command as a shell would run it, captionmill's in this process."""
    words = shlex.split(os.path.expandvars(line), comments=True)
    if words[0] != "captionmill":
        subprocess.run(["bash", "-euc", line], check=True)
        return
    expanded = [name for word in words[1:] for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    appended = APPENDED.get(expanded[0], "").split()
    for option, value in zip(appended[::2], appended[1::2], strict=True):
        if option in expanded:
            expanded[expanded.index(option) + 1] = value
        else:
            expanded += [option, value]
    result = CliRunner().invoke(main, expanded, catch_exceptions=False)
    assert result.exit_code == 0, f"{line}\n{result.output}"


def run_block(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    text = small(block.text)
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(text, encoding="utf-8")
        if array := re.search(r"#SBATCH --array=(\d+)-(\d+)", text):
            for task in range(int(array[1]), int(array[2]) + 1):
                monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
                for line in block.lines:
                    run_line(line)
    elif block.language == "python":
        exec(compile(text, block.page, "exec"), names)
    elif block.language == "bash":
        for line in Block(block.page, "bash", "", text, "").lines:
            run_line(line)


def draw_photos(folder: Path, names: list[str], seed: int) -> None:
    """A drawn scene by each name."""
    drawn = folder.parent / f"{folder.name}-drawn"
    draw_samples(drawn, len(names), seed=seed, workers=1)
    for name, path in zip(names, sorted(path for path in drawn.rglob("*.*")), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, folder / name)
    shutil.rmtree(drawn)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small things by the names that the pages use."""
    folder = tmp_path_factory.mktemp("stand_ins")
    draw_samples(folder / "photos", 24, seed=1, captions_path=folder / "captions.csv", workers=1)
    draw_photos(folder / "new-photos", ["one.png", "dog.jpg"], 2)
    table = next(block.text for block in blocks_of("docs/how-to/own-captions.md") if block.language == "csv")
    draw_photos(folder / "my-photos", sorted({line.split(",")[0] for line in table.splitlines()[1:]}), 3)
    (folder / "my-photos" / "notes.jpg").write_text("no picture")
    flickr = folder / "Flickr8k"
    names = [f"{number}_0a1b2c3d4e.jpg" for number in range(1000, 1020)]
    draw_photos(flickr / "images", names, 4)
    lines = [f"{name}#{number}\tA dog in scene {number} .\n" for name in names for number in range(5)]
    (flickr / "Flickr8k.token.txt").write_text("".join(lines))
    for split, chosen in {"train": names[:12], "dev": names[12:15], "test": names[15:]}.items():
        (flickr / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{name}\n" for name in chosen))
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "00000.tar", "w") as tar:
        for path in sorted((folder / "new-photos").iterdir()):
            tar.add(path, path.name)
    torch.save(safetensors.torch.load_file(SCENES_WEIGHTS_PATH), folder / "resnet50-0676ba61.pth")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        run_line("captionmill extract photos --output features.h5")
        run_line("captionmill train features.h5 --captions captions.csv --output model")
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if any(not block.needs for block in blocks_of(page))])
def test_the_commands_of_a_page_run_in_order(
    page: str, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in STAND_INS.get(page, ()):
        copy = shutil.copytree if (stand_ins / name).is_dir() else shutil.copy
        copy(stand_ins / name, tmp_path / name)
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        if not block.needs:
            run_block(block, names, monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why_and_names_commands_and_options_that_exist(page: str) -> None:
    for block in blocks_of(page):
        assert not block.needs or block.needs in NEEDS, f"{block.needs}: one of {', '.join(sorted(NEEDS))}"
        if not block.needs or block.language != "bash":
            continue
        for line in block.lines:
            words = shlex.split(line, comments=True)
            if words[0] != "captionmill":
                continue
            command: click.Command = main
            context, words = click.Context(main, **main.context_settings), words[1:]
            while isinstance(command, click.Group) and words and not words[0].startswith("-"):
                command, words = command.commands[words[0]], words[1:]
                # Under its parent: a command keeps the help option that its first context gave it.
                context = click.Context(command, parent=context)
            command.make_parser(context).parse_args(words)  # NoSuchOption names the option


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_stands_in_a_block_that_is_run_or_marked(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    outside = _BLOCK.sub("", text)
    assert not re.findall(r"^(?: {4}|\t)\s*(?:\$ )?(?:captionmill|python|make|pip|dask) .*$", outside, re.M)
    assert "```" not in outside.replace("`````", ""), "a fence that is not closed, or a marker that is not understood"
    for block in blocks_of(page):
        if block.language not in ("bash", "python"):
            assert not re.search(r"^(?:\$ )?captionmill [a-z]+ ", block.text, re.M), f"mark as bash: {block.text}"
    markers = re.findall(r"<!-- needs:", text)
    assert len(markers) == sum(bool(block[0]) for block in _BLOCK.findall(text)), "a marker without a block under it"


def test_every_substitution_is_needed() -> None:
    texts = [block.text for page in PAGES for block in blocks_of(page) if not block.needs]
    for words in REPLACED:
        assert any(words in text for text in texts), words
    for command in APPENDED:
        assert any(f"captionmill {command} " in text for text in texts), command
    assert set(STAND_INS) <= set(PAGES)


def test_the_pipeline_of_the_tutorial_is_understood_as_it_stands(tmp_path: Path) -> None:
    text = next(block.text for block in blocks_of("docs/tutorial.md") if block.language == "toml")
    (tmp_path / "pipeline.toml").write_text(text)
    training = next(task.job for task in read_plan(tmp_path / "pipeline.toml").tasks if task.id == "train")
    assert isinstance(training, TrainJob)
    assert training.config.max_epochs == 6


def test_the_table_of_weights_is_torchvisions() -> None:
    text = (ROOT / "docs" / "how-to" / "air-gapped.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| (resnet\d+) \| (\w+) \| `([^`]+)` \| (\d+) \|$", text, re.M))
    assert rows == {
        (backbone, weights.name.lower(), weights.url.rsplit("/", 1)[1], f"{weights.meta['_file_size']:.0f}")
        for backbone in get_args(Backbone)
        if backbone != "scenes-resnet14"
        for weights in get_model_weights(backbone)
    }


def test_the_line_that_a_new_backbone_needs_is_the_line_that_is_there() -> None:
    blocks = blocks_of("docs/how-to/add-a-backbone.md")
    line = next(block.text for block in blocks if block.title == "stages/settings.py").strip()
    assert line.replace('"resnext50_32x4d", ', "") in (ROOT / "stages" / "settings.py").read_text(encoding="utf-8")
