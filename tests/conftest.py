"""What every test process starts with: one thread, nothing that imports left to be collected, and ears for Ctrl-C."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from harness.runner import executor
from tests import preloaded

TESTS = Path(__file__).parent
ANNOTATED = ("attentions", "hyper_attn", "tasks", "transformer_vq")  # packages that `--jaxtyping-packages` names

# A script that runs the tests in the background makes them, and all that they start, deaf to SIGINT.
HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
for number, handler in HANDLERS.items():
    signal.signal(number, handler)

# Parallel workers whose tensors are small lose most of their time to threads that wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def preloaded_fork_servers() -> Iterator[None]:
    """Let sweeps in this process have fork servers that start at once; commands in `subprocess` start their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "start_fork_server", preloaded.start_fork_server)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check the types of annotated functions in the tests of their own packages, unless a marker says otherwise.

    The checks take half the time of a test that makes thousands of short calls.
    """
    checked = item.path.is_relative_to(TESTS) and item.path.relative_to(TESTS).parts[0] in ANNOTATED
    unchecked = item.get_closest_marker("no_type_checks") is not None
    jaxtyping.config.update("jaxtyping_disable", not checked or unchecked)


@pytest.fixture(autouse=True)
def signals_are_left_alone() -> Iterator[None]:
    """A test that ignores signals makes every process deaf to them that later tests start."""
    yield
    left = [signal.getsignal(number) for number in HANDLERS]
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    assert left == list(HANDLERS.values()), "the test has changed a signal handler"


def pytest_collection_finish() -> None:
    """What imports and collection left is here to stay: collecting it would take a third of a second each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Extensions that count what they leave behind at the end want it collected."""
    gc.unfreeze()
