"""One thread a test process: parallel workers whose tensors are small lose most of their time to threads that wait."""

from __future__ import annotations

import gc
import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_finish() -> None:
    """What imports and collection left is here to stay: collecting it would take a third of a second each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Extensions that count what they leave behind at the end want it collected."""
    gc.unfreeze()
