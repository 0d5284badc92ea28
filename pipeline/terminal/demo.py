"""`captionmill demo`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from captionmill.pipeline import words
from captionmill.pipeline.terminal.options import FOLDER_PATH, quiet_option
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import epoch_printer, show_outcomes, show_result, stage_printer

if TYPE_CHECKING:
    from captionmill.pipeline.demo.demo import DemoSummary
    from captionmill.pipeline.result_fields import Fields


@click.command(short_help="Draw images, train on them and write a page of captions.")
@click.argument("folder", metavar="[DIR]", type=FOLDER_PATH, default=Path("captionmill-demo"))
@quiet_option
def demo(folder: Path, quiet: bool) -> None:
    """Draw images into DIR, extract, train, evaluate, caption held-out images and write a page, all offline.

    DIR is captionmill-demo unless given. The commands are shown, so that you can repeat them on your own images.

    Example: captionmill demo
    """
    from captionmill.pipeline.demo.demo import run_demo

    with ProgressBars(quiet=quiet) as progress:
        summary = run_demo(
            folder, on_stage=stage_printer(quiet), on_epoch=epoch_printer(quiet, progress), progress=progress
        )
    show_outcomes(summary.outcomes)
    show_result(_text(summary), demo_fields(summary))


def _text(summary: "DemoSummary") -> str:
    right = (
        f"\n{summary.right_count} of {summary.held_out_count} held-out captions are right in every object, colour, "
        f"size and background ({words.show_duration(summary.duration_s)})"
    )
    lines = [right, f"  captions  {summary.captions_path}", f"  page      {summary.page_path}"]
    lines += [f"  report    {summary.report_path}"] if summary.report_path else []
    return "\n".join([*lines, f"  repeat    captionmill run {summary.folder / 'pipeline.toml'}"])


def demo_fields(summary: "DemoSummary") -> "Fields":
    """The files and the result of the demo."""
    return {
        "output": summary.folder,
        "right": summary.right_count,
        "held_out": summary.held_out_count,
        "captions": summary.captions_path,
        "page": summary.page_path,
        "report": summary.report_path,
        "seconds": round(summary.duration_s, 3),
    }
