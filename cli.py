"""The `captionmill` command. Each command is options -> one call -> a summary, and stands in pipeline/terminal/."""

import logging
import os

import click

from captionmill.pipeline.terminal.caption_command import caption
from captionmill.pipeline.terminal.completion_command import completion
from captionmill.pipeline.terminal.doctor_command import doctor
from captionmill.pipeline.terminal.endings import ErrorGroup, listen_to_signals
from captionmill.pipeline.terminal.evaluate_command import evaluate
from captionmill.pipeline.terminal.explain_command import explain
from captionmill.pipeline.terminal.export_command import export
from captionmill.pipeline.terminal.extract_command import extract
from captionmill.pipeline.terminal.features_commands import features
from captionmill.pipeline.terminal.leaks_command import leaks
from captionmill.pipeline.terminal.progress_bars import EchoHandler
from captionmill.pipeline.terminal.report_command import report
from captionmill.pipeline.terminal.run_commands import demo, init, run, status
from captionmill.pipeline.terminal.train_command import train
from captionmill.pipeline.terminal.vocabulary_command import vocabulary

# torch's threads would spin while they wait for each other: with another busy program beside them, training took seven
# times as long. Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="captionmill")
def main() -> None:
    """Caption images offline and in bulk.

    Features of a frozen ResNet are cached once (extract); a decoder is trained on them (train), scored (evaluate), and
    captions folders of pictures to CSV (caption). Start with: captionmill demo
    """
    logger = logging.getLogger("captionmill")
    logger.handlers = [EchoHandler()]
    logger.setLevel(logging.WARNING)
    listen_to_signals()


# in the order in which a user meets them
for _command in (
    demo,
    doctor,
    init,
    run,
    status,
    report,
    extract,
    features,
    vocabulary,
    train,
    evaluate,
    leaks,
    caption,
    explain,
    export,
    completion,
):
    main.add_command(_command)


if __name__ == "__main__":  # for torchrun: python -m captionmill.cli
    main(prog_name="captionmill")
