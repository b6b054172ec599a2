"""`BACKENDS` maps names to classes; `build` creates an attention from a name.

To add a backend, add one file and one line in `BACKENDS`. A backend outside the project is written
`package.module:Class` wherever a name is expected.

The table calls `resolve_name` because an import statement would be a second line per backend.
`harness.common.source_hash` and the tests of the import structure read these calls as imports.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from pkgutil import resolve_name
from typing import Any

from attentions.base import Attention

BACKENDS: dict[str, type[Attention]] = {
    "vanilla": resolve_name("attentions.vanilla:Vanilla"),
    "flash": resolve_name("attentions.flash:Flash"),
    "bit_sampling": resolve_name("attentions.bit_sampling:BitSampling"),
    "simhash": resolve_name("attentions.simhash:SimHashAttention"),
    "lsh_forest": resolve_name("attentions.lsh_forest:LSHForest"),
    "reformer": resolve_name("attentions.reformer:Reformer"),
    "lsh_v2": resolve_name("attentions.lsh_v2:LSHv2"),
    "vq": resolve_name("attentions.vq:VQ"),
    "vq_qk": resolve_name("attentions.vq_qk:VQQK"),
    "hyper": resolve_name("attentions.hyper:Hyper"),
    "mamba": resolve_name("attentions.mamba:Mamba"),
    "mamba2": resolve_name("attentions.mamba2:Mamba2"),
}


def resolve(name: str) -> type[Attention]:
    """Return the class for a name in `BACKENDS` or a path `package.module:Class`.

    Raises ValueError with the given name and, if it looks mistyped, the closest matches.
    """
    if name in BACKENDS:
        return BACKENDS[name]
    if ":" not in name or name.startswith("."):  # there is no package here for a relative import
        near = difflib.get_close_matches(name, BACKENDS, n=3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ValueError(
            f"unknown backend {name!r}; {hint}available are {', '.join(BACKENDS)} and package.module:Class"
        )
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"backend {name!r} cannot be imported: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, Attention)):
        raise ValueError(f"backend {name!r} is not a subclass of attentions.Attention")
    return found


def settings_of(backend: type[Attention]) -> dict[str, inspect.Parameter]:
    """Return every setting that a backend's constructor takes, by name, including those of its base classes."""
    found: dict[str, inspect.Parameter] = {}
    for base in backend.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        own = [p for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD]
        found |= {p.name: p for p in own if p.name not in found}
        if len(own) + 1 == len(parameters):  # no **kwargs, so nothing is passed on to the bases
            break
    return found


def build(name: str, **settings: Any) -> Attention:
    """Create an attention: `build("flash", heads=4, head_dim=64, causal=True)`.

    Raises ValueError for an unknown name and for settings that the class does not have or does not allow.
    """
    backend = resolve(name)
    known = settings_of(backend)
    for setting in settings:
        if setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"{name} has no setting {setting!r}; {hint}it has {', '.join(known)}")
    return backend(**settings)
