"""What every test process starts with: one thread, nothing that imports left to be collected, and ears for Ctrl-C."""

from __future__ import annotations

import gc
import os
import signal

import torch

# A script that runs the tests in the background makes them, and all that they start, deaf to SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Parallel workers whose tensors are small lose most of their time to threads that wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_finish() -> None:
    """What imports and collection left is here to stay: collecting it would take a third of a second each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Extensions that count what they leave behind at the end want it collected."""
    gc.unfreeze()
