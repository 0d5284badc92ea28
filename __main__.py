"""The `captionmill` command, also as `python -m captionmill`.

Ctrl-C ends it without a word while it is imported and while Python ends, when there is nothing to say; in between, the
command says what is kept.
"""

import signal


def main() -> None:
    """Run the command of the command line."""
    _end_in_silence()
    from captionmill.cli import main as run_command

    try:
        run_command()
    finally:
        _end_in_silence()


def _end_in_silence() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    main()
