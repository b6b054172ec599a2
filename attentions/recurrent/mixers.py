"""Copies weights between the Mamba blocks and transformers' mixers, whose parts must all be known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from attentions.common.settings import require

LINEAR = ("torch.nn.modules.linear.Linear",)
CONVOLUTION = ("torch.nn.modules.conv.Conv1d",)
SILU = ("transformers.activations.SiLUActivation", "torch.nn.modules.activation.SiLU")


def check_mixer(mixer: nn.Module, kind: str, parts: Mapping[str, tuple[str, ...]]) -> None:
    """Raise ValueError unless `mixer` is exactly of class `kind` and has only known parts; the message names it.

    Classes are given by their full names; `parts` lists the classes allowed for each submodule. Subclasses and wrappers
    are rejected, because there is no way to see what they change.
    """
    allowed = f"{kind}, the only supported class"
    require(_name(mixer) == kind, "mixer", _name(mixer), allowed)
    m: Any = mixer
    require(m.activation in ("silu", "swish"), "activation", m.activation, "silu")
    children = {name: _name(child) for name, child in mixer.named_children()}
    for name in sorted(children.keys() | parts.keys()):
        known = parts.get(name, ())
        allowed = " or ".join(known) or "absent, since a mixer has no such part"
        require(children.get(name) in known, f"mixer.{name}", children.get(name), allowed)
    buffers = [name for name, _ in mixer.named_buffers()]
    require(not buffers, "mixer's buffers", ", ".join(buffers), "absent, since a mixer has none")
    conv = m.conv1d
    for name, value in {"stride": (1,), "dilation": (1,), "groups": conv.in_channels, "padding_mode": "zeros"}.items():
        require(getattr(conv, name) == value, f"mixer.conv1d.{name}", getattr(conv, name), repr(value))


def copy_weights(source: nn.Module, target: nn.Module, what: str) -> None:
    """Copy the weights of `source` to `target`, keeping each weight's dtype and device.

    Raises ValueError that names weights found in only one of the two, or with different shapes.
    """
    given, wanted = source.state_dict(), target.state_dict()
    unknown, missing = (sorted(a.keys() - b.keys()) for a, b in ((given, wanted), (wanted, given)))
    require(not unknown, f"{what}'s weights", ", ".join(unknown), "absent, since they would have no effect")
    require(not missing, f"{what}'s weights without", ", ".join(missing), "complete")
    for name, weight in given.items():
        shape, allowed = tuple(weight.shape), tuple(wanted[name].shape)
        require(shape == allowed, f"shape of {what}'s {name}", shape, repr(allowed))
    target.load_state_dict({name: weight.clone() for name, weight in given.items()}, assign=True)


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
