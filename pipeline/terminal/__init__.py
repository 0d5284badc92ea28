"""The command line: one module per command, and what they share.

Until `listen_to_signals` is called, nothing has begun: Ctrl-C and SIGTERM end the process at once, with the exit codes
that they have later, instead of the traceback of a half-finished import.
"""

import os
import signal
import threading


def _end_at_once(number: int, _: object) -> None:
    os._exit(128 + number)


_is_main_thread = threading.current_thread() is threading.main_thread()
if _is_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody else listens
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _end_at_once)
