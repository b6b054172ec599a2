"""Make the inputs that a case names. To add a kind, add one file and one line in `KINDS`."""

from __future__ import annotations

from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from harness.common.import_path import is_path, nearest
from harness.inputs.custom import Custom
from harness.inputs.file import File
from harness.inputs.text import Text

if TYPE_CHECKING:
    from harness.common.rows import Case
    from harness.inputs.base import InputKind, Inputs

KINDS: dict[str, type[InputKind]] = {
    "gaussian": resolve_name("harness.inputs.gaussian:Gaussian"),
    "planted": resolve_name("harness.inputs.planted:Planted"),
    "text": Text,
}


@cache
def kind_of(name: str) -> InputKind:
    """Return the source that `Case.inputs` names.

    The name is `gaussian`, `planted`, `text`, `text:<file>`, `<file>.safetensors` or `package.module:function`. The
    same name returns the same object, so that a text is read once per process. Raises ValueError for any other name.
    """
    if name in KINDS:
        return KINDS[name]()
    if name.startswith("text:"):
        return Text(name.removeprefix("text:"))
    if name.endswith(".safetensors"):
        return File(name)
    if is_path(name):
        return Custom(name)
    hint = nearest(name, KINDS)
    allowed = f"{', '.join(KINDS)}, text:<file>, a .safetensors file or package.module:function"
    raise ValueError(f"unknown inputs {name!r}; {hint}allowed are {allowed}")


def make_inputs(case: Case, variant: int) -> Inputs:
    """Return q (B, H, N, D), k (B, G, M, D) and v (B, G, M, E) of a case on the CPU, in the case's dtype.

    Variants 0 and 1 are the two sets that alternate while timing: equal at the first M // 2 positions and different
    after that (keys of `text` one position later, because they encode earlier bytes), so that running both also shows
    causality violations. Variant 2 is for calibration: at most 16,384 positions that neither of the others attends to,
    with N = M. N = M = n, except in decode mode, where N = 1 and M = n + 1. The same case and variant give the same
    inputs in every process. Raises ValueError if the source cannot provide them.
    """
    return kind_of(case.inputs).make(case, variant)


def make_hidden(case: Case, variant: int) -> Float[Tensor, "B M X"]:
    """Return x (B, M, heads·head_dim) of a case at layer level, under the same rules as `make_inputs`."""
    return kind_of(case.inputs).hidden(case, variant)


def identity(inputs: str) -> str:
    """Return a hash of what these inputs are made from, such as a file's content or a function's source, or "".

    The hash changes when they are replaced. Raises ValueError for an unknown name.
    """
    try:
        return kind_of(inputs).identity()
    except OSError as error:  # removed since planning; making the inputs reports it
        return str(error.strerror)


def why_not(case: Case) -> str:
    """Return "" if the inputs of a case can be made, else one plain sentence, without making them."""
    try:
        return kind_of(case.inputs).why_not(case)
    except ValueError as error:
        return str(error)
