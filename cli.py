"""The `captionmill` command. Each command, in pipeline/terminal/, is options -> one call -> a summary."""

import logging
import os

import click

from captionmill.pipeline.terminal.apply import apply
from captionmill.pipeline.terminal.audit import audit
from captionmill.pipeline.terminal.caption import caption
from captionmill.pipeline.terminal.card import card
from captionmill.pipeline.terminal.compare import compare
from captionmill.pipeline.terminal.completion import completion
from captionmill.pipeline.terminal.demo import demo
from captionmill.pipeline.terminal.doctor import doctor
from captionmill.pipeline.terminal.duplicates import duplicates
from captionmill.pipeline.terminal.endings import ErrorGroup, listen_to_signals
from captionmill.pipeline.terminal.evaluate import evaluate
from captionmill.pipeline.terminal.explain import explain
from captionmill.pipeline.terminal.export import export
from captionmill.pipeline.terminal.extract import extract
from captionmill.pipeline.terminal.features import features
from captionmill.pipeline.terminal.init import init
from captionmill.pipeline.terminal.leaks import leaks
from captionmill.pipeline.terminal.pack import pack
from captionmill.pipeline.terminal.progress import EchoHandler
from captionmill.pipeline.terminal.report import report
from captionmill.pipeline.terminal.review import review
from captionmill.pipeline.terminal.run import run
from captionmill.pipeline.terminal.search import search
from captionmill.pipeline.terminal.status import status
from captionmill.pipeline.terminal.train import train
from captionmill.pipeline.terminal.vocabulary import vocabulary

# By default the threads of torch and of NumPy's OpenBLAS spin while they wait for each other: next to another busy
# program, training took seven times as long. To spin for a moment makes it a quarter faster where nothing else runs,
# and a sixth slower beside one busy program. Read once, when they are first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ["OMP_WAIT_POLICY"] = "passive"  # of OpenMP libraries other than GNU's
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # the shortest: 2^4 cycles


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="captionmill")
@click.pass_context
def main(context: click.Context) -> None:
    """Caption images offline and in bulk.

    Features of a frozen ResNet are cached once (extract); a decoder is trained on them (train), scored (evaluate), and
    captions folders of images to CSV (caption). Start with: captionmill demo
    """
    logger = logging.getLogger("captionmill")
    logger.handlers = [EchoHandler(main.commands.get(context.invoked_subcommand or ""))]
    logger.setLevel(logging.WARNING)
    logging.getLogger("captionmill.stages.encoding").setLevel(logging.INFO)  # what takes seconds
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
    duplicates,
    audit,
    search,
    caption,
    review,
    apply,
    compare,
    explain,
    export,
    card,
    pack,
    completion,
):
    main.add_command(_command)


if __name__ == "__main__":  # for torchrun: python -m captionmill.cli
    main(prog_name="captionmill")
