"""Two processes train the network that one would, and one of them speaks."""

import dataclasses
import re
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch.distributed.run
from builders import TINY_TRAINING, make_task
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from captionmill.data.errors import InputError
from captionmill.stages.machine import has_fast_bf16
from captionmill.stages.parallel import World, join_world
from captionmill.stages.settings import VALIDATION_SEARCH, SearchConfig, TrainConfig
from captionmill.stages.training.checkpoint import read_checkpoint
from captionmill.stages.training.train import train

CONFIG = dataclasses.replace(
    TINY_TRAINING,
    batch_size=5,
    max_epochs=3,
    dropout=0.0,
    feature_dropout=0.0,
    self_critical_epochs=1,
    matcher_epochs=0,
    search=SearchConfig(beam_size=2, max_length=6, rerank="consensus", candidates=3),
)  # 16 captions: the last batch is one caption, fewer than processes


def options_of(config: TrainConfig) -> list[str]:
    """As the command line has them."""
    changed = {
        name: value
        for name, value in vars(config).items()
        if value != getattr(TrainConfig(), name) and name != "search"
    }
    options = [text for name, value in changed.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    search = [f"--{name.replace('_', '-')}={getattr(config.search, name)}" for name in VALIDATION_SEARCH]
    return [*options, *search]


PROGRAM = """
import dataclasses, os, runpy, signal, torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from captionmill.stages.training import train
from captionmill.stages.training.state import LoopConfig

for name, descriptor in (("out", 1), ("err", 2)):  # the server's own are those of the test that started it
    os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT), descriptor)
torch.set_num_threads(1)
with_defaults = train.train

def train_with_checkpoints(*paths, listener, **settings):
    loop = LoopConfig(checkpoint_every_s=0, steps_per_check=1)
    return with_defaults(*paths, listener=dataclasses.replace(listener, loop=loop), **settings)

train.train = train_with_checkpoints
steps = []

def die_in_the_last_step_of_epoch_2(optimizer, *_):
    steps.append(optimizer)
    if len(steps) == 8 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

if {is_killed}:
    register_optimizer_step_pre_hook(die_in_the_last_step_of_epoch_2)
runpy.run_module("captionmill.cli", run_name="__main__")
"""
"""`python -m captionmill.cli`, with a checkpoint after each step; where it is wanted, the second process dies."""


def torchrun(folder: Path, features: Path, captions: Path, output: Path, *, is_killed: bool = False) -> None:
    """Train with two processes; ChildFailedError if one of them fails."""
    program = folder / "program.py"
    program.write_text(PROGRAM.format(is_killed=is_killed))
    words = ["train", str(features), "--captions", str(captions), "--output", str(output), *options_of(CONFIG)]
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    options = ["--standalone", "--nproc-per-node", "2", "--start-method", "forkserver", "--run-path"]
    try:
        torch.distributed.run.main([*options, str(program), *words])
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


def read_weights(model: Path) -> dict[str, torch.Tensor]:
    (path,) = model.glob("decoder-*.safetensors")
    return safetensors.torch.load_file(path)


def test_two_processes_one_of_which_is_killed_go_on_and_end_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    features, captions = make_task(tmp_path)
    alone = train(features, captions, tmp_path / "alone", CONFIG)
    torchrun(tmp_path, features, captions, tmp_path / "whole")

    output, work_dir = tmp_path / "model", tmp_path / "model.training"
    with pytest.raises(ChildFailedError) as error:
        torchrun(tmp_path, features, captions, output, is_killed=True)
    ((rank, failure),) = error.value.failures.items()
    assert failure.exitcode == {0: 1, 1: -signal.SIGKILL}[rank]  # the other one may be heard of first: it lost its peer
    assert not output.exists()
    checkpoint = read_checkpoint(work_dir)
    assert checkpoint
    assert (checkpoint.state["training"]["epoch"], checkpoint.state["training"]["step"]) in [(2, 2), (2, 3)]
    told = [tmp_path / "out", tmp_path / "err"]
    for path in told:
        path.unlink()
    torchrun(tmp_path, features, captions, output)

    out, err = (path.read_text() for path in told)
    assert re.fullmatch(rf"{output}: 14 words, epoch \d of 4 kept, .*\n", out)
    spoken = [line for line in err.splitlines() if line.startswith(("images", "epoch"))]
    assert [line.split(":")[0] for line in spoken] == ["images", "epoch 2", "epoch 3", "epoch 4"]
    assert not work_dir.exists()
    weights, whole_weights = map(read_weights, (output, tmp_path / "whole"))
    assert weights.keys() == whole_weights.keys()
    assert all(torch.equal(weights[name], whole_weights[name]) for name in weights)
    history, whole = (pd.read_csv(path / "history.csv") for path in (output, tmp_path / "whole"))
    untimed = ["epoch", "phase", "loss", "val_cider", "learning_rate"]
    pd.testing.assert_frame_equal(history[untimed], whole[untimed], check_exact=True)

    assert history["phase"].tolist() == 3 * ["cross entropy"] + ["self-critical"]
    for row, expected in zip(history.to_dict("records")[:3], alone.history, strict=False):
        assert row["loss"] == pytest.approx(expected.loss, abs=0.05 if has_fast_bf16() else 2e-4)
        assert has_fast_bf16() or row["val_cider"] == pytest.approx(expected.val_cider, abs=2e-4)
        assert row["learning_rate"] == pytest.approx(expected.learning_rate, abs=1e-4)
    assert 0 <= history["loss"][3] <= 10


def test_the_shares_of_a_batch_are_all_of_it() -> None:
    items = list(range(7))
    for size in (1, 2, 3, 9):
        shares = [World(rank, size).own(items) for rank in range(size)]
        assert sorted(item for share in shares for item in share) == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert World().gather([1, 2]) == [1, 2]
    assert [World(rank, 3).is_first for rank in range(3)] == [True, False, False]


def test_the_others_wait_as_long_as_the_first_process_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo gives up after half an hour, NCCL after ten minutes; the matcher of millions of captions takes longer."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings: dict[str, Any] = {}
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda _, **given: settings.update(given))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with join_world("cpu") as (world, _):
        assert (world.rank, world.size) == (1, 2)
    assert settings["timeout"] > timedelta(hours=12)


@pytest.mark.parametrize(("device", "gpus"), [("auto", 1), ("cuda", 1), ("cuda:1", 2)])
def test_processes_that_would_share_a_gpu_are_refused(device: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    refused = f"2 processes were started here.* torch sees {gpus}; .*start at most {gpus} processes"
    with pytest.raises(InputError, match=refused), join_world(device):
        pass
