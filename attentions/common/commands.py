"""The name of a command in its messages."""

from __future__ import annotations

CONSOLE = "attention-bench"
_called: list[str] = []


def call_as(name: str) -> None:
    """Let the next command call itself `name`; the console script does this before it runs a module."""
    _called[:] = [name]


def program_name(module: str) -> str:
    """`attention-bench NAME` if the console script runs this module, else `python -m MODULE`."""
    return _called[0] if _called else f"python -m {module}"
