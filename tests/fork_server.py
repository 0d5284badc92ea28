"""The server that forks the tests' processes: it has imported captionmill, torch and more, once for all of them.

The workers of pytest-xdist share one, which the process that hands out the tests has started. This module imports
nothing that takes time.
"""

import os
import sys
from multiprocessing import forkserver
from typing import Any

_PRELOADED = ["captionmill.cli", "captionmill.pipeline.plan.crew", "captionmill.pipeline.terminal.results"]
_PRELOADED += ["captionmill.stages.encoding.engines.torch", "captionmill.stages.encoding.network"]
_PRELOADED += ["distributed", "joblib", "matplotlib.backends.backend_agg", "matplotlib.figure", "pytest"]
_PRELOADED += ["torch._dynamo", "torch.distributed.run", "torch.utils.tensorboard", "torchvision"]
_ADDRESS = "CAPTIONMILL_TESTS_FORK_SERVER"
_SERVER: Any = vars(forkserver)["_forkserver"]


def start_server() -> None:
    """Start the server, if there is none yet, and leave its address to the processes that this one will start."""
    if _ADDRESS not in os.environ and sys.version_info < (3, 14):  # later ones ask their clients for a key
        forkserver.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()
        os.environ[_ADDRESS] = str(_SERVER._forkserver_address)


def use_server() -> None:
    """From now on the processes of this one are forked by the server that another process started, if one did."""
    forkserver.set_forkserver_preload(_PRELOADED)
    if _ADDRESS in os.environ and _SERVER._forkserver_address is None:
        _SERVER._forkserver_address = os.environ[_ADDRESS]
        _SERVER._forkserver_alive_fd = os.pipe()[1]  # what a server of this process's own would watch
        _SERVER.ensure_running = lambda: None
        vars(forkserver)["ensure_running"] = _SERVER.ensure_running
