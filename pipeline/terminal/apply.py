"""`captionmill apply`."""

from pathlib import Path

import click

from captionmill.data.errors import InputError
from captionmill.pipeline import summaries
from captionmill.pipeline.result_fields import decision_fields
from captionmill.pipeline.terminal.options import FILE, log_format_option
from captionmill.pipeline.terminal.results import show_result
from captionmill.pipeline.words import show_count


@click.command(short_help="Merge a file of decisions into a table of captions.")
@click.argument("decisions", type=FILE)
@click.option("--to", "table", type=FILE, required=True, help="Table of captions to change.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@log_format_option
def apply(decisions: Path, table: Path, dry_run: bool) -> None:
    """Merge DECISIONS, a file that the page of a gallery saved or another table, into a table of captions.

    Corrected captions get the status corrected, accepted ones the status accepted; no later run replaces them. Captions
    marked for later get a flag. A decision about a caption that has changed since the page was made is a conflict: the
    table stays as it is there, the decision is listed, and the exit code is 1 when all others are merged. The next
    `caption` run writes the captions into sidecars, metadata and gallery.

    From another table, such as one in CSV into one in JSON lines, the captions that a person corrected or accepted are
    merged, except into rows on which a person decided otherwise.

    Example: captionmill apply decisions.csv --to captions.csv
    """
    from captionmill.data.tables.decisions import apply_decisions

    summary = apply_decisions(decisions, table, dry_run=dry_run)
    show_result(
        f"{table}: {summaries.decision_line(summary)}{'; nothing is changed' if dry_run else ''}",
        decision_fields(summary, table, dry_run=dry_run),
    )
    if summary.conflicts:
        for conflict in summary.conflicts:
            click.echo(f"  {conflict.path}: {conflict.reason}", err=True)
        conflicts = show_count(len(summary.conflicts), "conflict")
        verb = "would be" if dry_run else "are"
        raise InputError(f"{decisions}: {conflicts} with {table}, listed above; all other decisions {verb} merged")
