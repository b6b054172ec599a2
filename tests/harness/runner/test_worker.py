"""Which errors of a child mean that memory ran out."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from harness.runner.worker import is_out_of_memory


def from_cause(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


MAPPING = "libopenblas.so: failed to map segment from shared object"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), True),
        (ImportError(MAPPING), True),
        (OSError(MAPPING), True),
        (from_cause(ValueError("'a:b' cannot be imported"), ImportError(MAPPING)), True),
        (from_cause(ValueError("'a:b' cannot be imported"), ImportError("No module named a")), False),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), False),
        (ValueError(MAPPING), False),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_errors_that_mean_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
