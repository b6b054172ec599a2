"""One thread a test process: parallel workers whose tensors are small lose most of their time to threads that wait."""

from __future__ import annotations

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
