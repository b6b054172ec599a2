"""The configuration of a layer, checked: unknown names and impossible values are refused in words."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(low: float, high: float) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value < high


def _setting(default: Any, allowed: str, check: Callable[[object], bool]) -> Any:
    return field(default=default, metadata={"allowed": allowed, "check": check})


def _count(default: int | None) -> Any:
    return _setting(default, "an integer of at least 1", _integer)


def _optional_count() -> Any:
    return _setting(None, "None or an integer of at least 1", lambda value: value is None or _integer(value))


def _rate(default: float) -> Any:
    return _setting(default, "a number from 0 to below 1", _number(0.0, 1.0))


def _flag(default: bool) -> Any:
    return _setting(default, "True or False", lambda value: isinstance(value, bool))


@dataclass(frozen=True, init=False)
class TransformerConfig:
    """Settings of a layer, by keyword; `d_model` must be given. What is None follows another setting.

    `n_code_q` and `n_code_k` are the codes a head for queries and for keys (None: `n_code`), `d_k` and `d_v` the widths
    of a key and of a value of one head (None: d_model / n_head). `block_len`: tokens of a block of causal attention.
    `gated`: outputs are multiplied by SiLU of a projection of the input. `p_dropres`: share of the output's entries
    that training drops; `p_droplyr`: share of sequences whose output it drops. `c_beta`: weight of the commitment loss;
    `c_gamma`: what codebooks keep of themselves in a step; `c_dead`: a code is seeded anew when its use falls below
    this share of the mean use.

    For the loop around the layer, which itself does not read them: `sequence_len`, `global_batch_size`, `lr`, `device`.

    Raises ValueError for an unknown name, a value that is not allowed, and a d_model that n_head does not divide.
    """

    d_model: int = _count(None)
    n_head: int = _count(1)
    n_code: int = _count(512)
    n_code_q: int | None = _optional_count()
    n_code_k: int | None = _optional_count()
    d_k: int | None = _optional_count()
    d_v: int | None = _optional_count()
    block_len: int = _count(512)
    causal: bool = _flag(True)
    gated: bool = _flag(True)
    p_dropres: float = _rate(0.0)
    p_droplyr: float = _rate(0.0)
    c_beta: float = _setting(1e-4, "a number of at least 0", _number(0.0, float("inf")))
    c_gamma: float = _rate(0.99)
    c_dead: float = _rate(0.03)
    sequence_len: int = _count(1024)
    global_batch_size: int = _count(4)
    lr: float = _setting(4e-4, "a number of at least 0", _number(0.0, float("inf")))
    device: str = _setting("cpu", "the name of a device, as 'cpu', 'cuda' or 'mps'", lambda value: type(value) is str)

    def __init__(self, **settings: Any) -> None:
        known = {one.name: one for one in fields(self)}
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ValueError(f"there is no setting {name!r}; {hint}there are {', '.join(known)}")
        for name, one in known.items():
            value = settings.get(name, one.default)
            if not one.metadata["check"](value):
                raise ValueError(f"{name}={value!r} is not allowed: it must be {one.metadata['allowed']}")
            object.__setattr__(self, name, value)
        if self.d_model % self.n_head and None in (self.d_k, self.d_v):
            raise ValueError(f"n_head={self.n_head} is not allowed: it must be a divisor of d_model={self.d_model}")

    @property
    def key_dim(self) -> int:
        """Width of a query or key of one head."""
        return self.d_k or self.d_model // self.n_head

    @property
    def value_dim(self) -> int:
        """Width of a value of one head."""
        return self.d_v or self.d_model // self.n_head

    @property
    def query_codes(self) -> int:
        """Codes of a head's queries."""
        return self.n_code_q or self.n_code

    @property
    def key_codes(self) -> int:
        """Codes of a head's keys."""
        return self.n_code_k or self.n_code
