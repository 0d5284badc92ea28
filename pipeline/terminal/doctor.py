"""`captionmill doctor`."""

import click

from captionmill.pipeline import summaries
from captionmill.pipeline.result_fields import machine_fields
from captionmill.pipeline.terminal.extract import extract
from captionmill.pipeline.terminal.names import as_typed
from captionmill.pipeline.terminal.options import quiet_option
from captionmill.pipeline.terminal.progress import ProgressBars
from captionmill.pipeline.terminal.results import show_result


@click.command(short_help="Print versions, devices and throughput, and advice.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, max=600),
    default=10.0,
    show_default=True,
    help="Length of the throughput test; 0 leaves it out.",
)
@quiet_option
def doctor(seconds: float, quiet: bool) -> None:
    """Print versions, devices, engines and the throughput of this machine, and advice on what to change.

    Three parts are measured one by one: decoding JPEGs of 500 x 375 pixels, a ResNet-50 with random weights and the
    decoder's beam search. Nothing is downloaded.

    Example: captionmill doctor
    """
    from captionmill.pipeline.doctor import advise, gather_facts
    from captionmill.pipeline.throughput import measure_throughput

    facts = gather_facts()
    with ProgressBars(quiet=quiet) as progress:
        throughput = measure_throughput(seconds / 3, progress=progress) if seconds else None
    advice = [as_typed(line, extract) for line in advise(facts, throughput)]
    show_result(summaries.doctor_lines(facts, throughput, advice), machine_fields(facts, throughput, advice))
