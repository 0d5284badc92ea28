"""Two processes train the network that one would, and one of them speaks."""

import dataclasses
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch.distributed.run
from builders import TINY_TRAINING, make_task

from captionmill.stages.config import TrainConfig
from captionmill.stages.decoding import trainer as trainer_module
from captionmill.stages.decoding.checkpoint import read_checkpoint, write_checkpoint
from captionmill.stages.decoding.train import train
from captionmill.stages.parallel import World
from captionmill.stages.runtime import has_fast_bf16


class Killed(BaseException):
    """As sudden as a KeyboardInterrupt."""


CONFIG = dataclasses.replace(
    TINY_TRAINING, batch_size=5, max_epochs=3, dropout=0.0, feature_dropout=0.0, self_critical_epochs=1
)  # 16 captions: the last batch is one caption, fewer than processes


def options_of(config: TrainConfig) -> list[str]:
    """As the command line has them."""
    changed = {
        name: value
        for name, value in vars(config).items()
        if value != getattr(TrainConfig(), name) and name != "search"
    }
    options = [text for name, value in changed.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return [*options, "--beam-size", str(config.search.beam_size)]


def test_two_processes_go_on_with_a_training_and_end_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    features, captions = make_task(tmp_path)
    alone = train(features, captions, tmp_path / "alone", CONFIG)

    def kill(label: str, done: int, total: int, **_: object) -> None:
        if label.startswith("epoch 2 ") and done == 3:
            raise Killed

    output, work_dir = tmp_path / "model", tmp_path / "model.training"
    with monkeypatch.context() as patched:
        patched.setattr(trainer_module, "_STEPS_A_LOOK", 1)
        with pytest.raises(Killed):
            train(features, captions, output, CONFIG, checkpoint_every_s=0, progress=kill)
    checkpoint = read_checkpoint(work_dir)
    assert checkpoint
    checkpoint.state["made_from"]["number of processes"] = "2"  # all else is the same, without dropout
    write_checkpoint(work_dir, checkpoint)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    command = ["-m", "captionmill.cli", "train", str(features), "--captions", str(captions), "--output", str(output)]
    try:
        torch.distributed.run.main(["--standalone", "--nproc-per-node", "2", *command, *options_of(CONFIG)])
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)

    out, err = capfd.readouterr()
    assert re.fullmatch(rf"{output}: 14 words, epoch \d of 4 kept, .*\n", out)
    spoken = [line for line in err.splitlines() if line.startswith(("images", "epoch"))]
    assert [line.split(":")[0] for line in spoken] == ["images", "epoch 2", "epoch 3", "epoch 4"]
    history = pd.read_csv(output / "history.csv")
    assert history["phase"].tolist() == 3 * ["cross entropy"] + ["self-critical"]
    for row, expected in zip(history.to_dict("records")[:3], alone.history, strict=False):
        assert row["loss"] == pytest.approx(expected.loss, abs=0.05 if has_fast_bf16() else 2e-4)
        assert has_fast_bf16() or row["val_cider"] == pytest.approx(expected.val_cider, abs=2e-4)
        assert row["learning_rate"] == pytest.approx(expected.learning_rate, abs=1e-4)
    assert 0 <= history["loss"][3] <= 10
    assert not work_dir.exists()


def test_the_shares_of_a_batch_are_all_of_it() -> None:
    items = list(range(7))
    for size in (1, 2, 3, 9):
        shares = [World(rank, size).share(items) for rank in range(size)]
        assert sorted(item for share in shares for item in share) == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert World().gather([1, 2]) == [1, 2]
    assert [World(rank, 3).is_first for rank in range(3)] == [True, False, False]
