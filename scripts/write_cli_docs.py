"""Writes docs/cli.md from the program's own help; a test fails when the two differ.

python scripts/write_cli_docs.py
"""

from pathlib import Path

import click

from captionmill.cli import main as captionmill

CLI_DOCS_PATH = Path(__file__).parents[1] / "docs" / "cli.md"
_COLUMNS = 80  # they fit into the column of the site at 1280 pixels
_HEAD = """\
# The commands

Written by `python scripts/write_cli_docs.py` from the program's own help. Results go to stdout, progress and warnings
to stderr. Exit code 0: done; 1: an error, shown as one line; 2: wrong usage; 143: ended by SIGTERM. Ctrl-C ends
a command by that signal, which shells show as 130; `review`, which it ends as a rule, has 0.

On a terminal, progress is a line that is redrawn, elsewhere a plain line every half minute; `--quiet` leaves it out.
With `--log-format json` all output is JSON, one object per line, with `time` (UTC), `level` (info, warning, error,
critical), `event` and `message`: a `result` on stdout; on stderr a `note`, a `log` record with its `logger`, an
`error`, a `bug` with its `traceback`, or `progress`, every five seconds and at the end of each part of the work, with
`label`, `done`, `total`, `rate` (per second) and `left_s` (null while unknown). A result has `command` and the fields
that are listed [for each command](formats.md#results-as-json).
"""


def render_cli_docs() -> str:
    """The text of docs/cli.md: the help of every command."""
    return _HEAD + "".join(_render(captionmill, "captionmill", None))


def _render(command: click.Command, name: str, parent: click.Context | None) -> list[str]:
    settings = {"max_content_width": _COLUMNS, "terminal_width": _COLUMNS, **command.context_settings}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    sections = [f"\n## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            sections += _render(command.commands[child_name], child_name, context)
    return sections


if __name__ == "__main__":
    CLI_DOCS_PATH.write_text(render_cli_docs(), encoding="utf-8")
