"""The configuration of a layer, validated: unknown names and invalid values raise clear errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

MAX_SIZE = 2**40  # far beyond any machine, and products of a few still fit in 64 bits


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIZE


def _device(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"cpu|mps|cuda(:\d+)?", value) is not None


def _number(low: float, high: float) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value < high


def _setting(default: Any, allowed: str, check: Callable[[object], bool]) -> Any:
    return field(default=default, metadata={"allowed": allowed, "check": check})


def _count(default: int | None) -> Any:
    return _setting(default, "an integer from 1 to 2**40", _integer)


def _optional_count() -> Any:
    return _setting(None, "None or an integer from 1 to 2**40", lambda value: value is None or _integer(value))


def _rate(default: float) -> Any:
    return _setting(default, "a number from 0 to below 1", _number(0.0, 1.0))


def _flag(default: bool) -> Any:
    return _setting(default, "True or False", lambda value: isinstance(value, bool))


@dataclass(frozen=True, init=False)
class TransformerConfig:
    """Settings of a layer, by keyword; `d_model` is required. A setting of None follows another one.

        `n_code_q`, `n_code_k`: codes per head for queries and for keys (None: `n_code`).
        `d_k`, `d_v`: widths of a key and of a value of one head (None: d_model / n_head).
        `block_len`: tokens per block of causal attention.
        `gated`: multiply outputs by SiLU of a projection of the input.
        `p_dropres`: dropout rate of the output's entries in training.
        `p_droplyr`: rate at which training drops the output of whole sequences.
        `c_beta`: weight of the commitment loss.
        `c_gamma`: decay of the codebooks' running means per step.
        `c_dead`: a code is reseeded when its use falls below this share of the mean use.

    The layer does not read these; they are for the training loop around it: `sequence_len`, `global_batch_size`,
    `steps`, `lr`, `device`.

    Raises ValueError for an unknown name, a value that is not allowed, a d_model that n_head does not divide, and for a
    whole conf.yml instead of its section `vq`.
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
    steps: int = _count(10)
    lr: float = _setting(4e-4, "a number above 0", lambda value: _number(0.0, float("inf"))(value) and value != 0)
    device: str = _setting("cpu", "cpu, cuda, cuda:<index> or mps", _device)

    def __init__(self, **settings: Any) -> None:
        known = self.allowed()
        if isinstance(settings.get("vq"), Mapping):
            raise ValueError("this is a full conf.yml; pass only its section: TransformerConfig(**config['vq'])")
        for name, why in self.refusals(settings).items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ValueError(f"there is no setting {name!r}; {hint}known settings are {', '.join(known)}")
            raise ValueError(f"{name}={settings.get(name)!r} is not allowed: {why}")
        for one in fields(self):
            object.__setattr__(self, one.name, settings.get(one.name, one.default))

    @classmethod
    def allowed(cls) -> dict[str, str]:
        """What each setting must be, in words."""
        return {one.name: one.metadata["allowed"] for one in fields(cls)}

    @classmethod
    def refusals(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        """Why settings are rejected, by name: unknown names first, then invalid values."""
        known = {one.name: one for one in fields(cls)}
        found = {name: "there is no such setting" for name in settings if name not in known}
        values = {name: settings.get(name, one.default) for name, one in known.items()}
        for name, one in known.items():
            if not one.metadata["check"](values[name]):
                found[name] = f"it must be {one.metadata['allowed']}"
        derived = None in (values["d_k"], values["d_v"]) and not {"d_model", "n_head", "d_k", "d_v"} & found.keys()
        if derived and values["d_model"] % values["n_head"]:
            found["n_head"] = f"it must be a divisor of d_model={values['d_model']}"
        return found

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
        """Number of query codes per head."""
        return self.n_code_q or self.n_code

    @property
    def key_codes(self) -> int:
        """Number of key codes per head."""
        return self.n_code_k or self.n_code
