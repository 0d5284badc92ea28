"""`captionmill review`."""

import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from captionmill.pipeline.terminal.options import ANY_OR_URL, FILE, log_format_option
from captionmill.pipeline.terminal.results import show_result
from captionmill.pipeline.words import show_count

if TYPE_CHECKING:
    from captionmill.pipeline.review.server import ReviewServer


@click.command(short_help="Review a table of captions in a browser.")
@click.argument("table", type=FILE)
@click.option(
    "--images",
    type=ANY_OR_URL,
    help="Images that were captioned: a folder, list, tar or URL.  [default: looked for near TABLE]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port on 127.0.0.1; 0: any free one.  [default: 8642, or a free one if that is taken]",
)
@click.option("--no-browser", is_flag=True, help="Only show the address, open no browser.")
@log_format_option
def review(table: Path, images: Path | str | None, port: int | None, no_browser: bool) -> None:
    """Review the captions of TABLE in a browser; "Save" there saves into TABLE.

    The page is that of `caption --gallery`. It is served to this machine only, at an address with a secret token, until
    Ctrl-C. Nothing but decisions is written: corrected and accepted captions, which no later run replaces, and the flag
    of captions for later. The next `caption` run writes them into sidecars, metadata and gallery.

    Example: captionmill review captions.csv --images photos
    """
    from captionmill.pipeline.review.server import serve_review

    def show(server: "ReviewServer") -> None:
        lines = [f"{table}: {show_count(len(server.keys), 'image')}, {len(server.images):,} of them found"]
        lines.append(f"{server.address} shows them, on this machine only; Ctrl-C ends this")
        fields = {"output": table, "images": len(server.keys), "found": len(server.images)}
        show_result("\n".join(lines), fields | {"address": server.address})
        if not no_browser:  # in its own thread: a browser in the terminal waits for the page
            threading.Thread(target=webbrowser.open, args=[server.address], daemon=True).start()

    saved = serve_review(table, images, port=port, on_ready=show)
    counts = (
        f"{show_count(saved.corrected, 'caption')} corrected, {saved.accepted:,} accepted, {saved.later:,} for later"
        + f", {saved.taken_back:,} taken back" * bool(saved.taken_back)
    )
    click.echo(err=True)  # after the ^C that a terminal shows
    show_result(f"Ended. Saved in {table}: {counts}", {"output": table, **vars(saved)})
