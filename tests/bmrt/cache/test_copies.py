"""A model that a cache watches is copied, stored and sent to other processes as if no cache were there."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bmrt import STRATEGIES, BoundedCache, Hybrid, build_strategy
from tests import preloaded
from tests.bmrt.models import fed, tiny, tokens


def stored(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: list[Callable[[Any], Any]] = [copy.deepcopy, stored, lambda x: pickle.loads(pickle.dumps(x))]


def hooks(model: Any) -> int:
    decoder = model.base_model
    tables = [table for name, table in vars(decoder).items() if name.startswith("_forward_")]
    return sum(map(len, tables)) + ("__getstate__" in vars(decoder))


@pytest.mark.parametrize("way", WAYS)
def test_a_watched_model_is_copied_without_its_cache(way: Callable[[Any], Any]) -> None:
    model, ids = tiny(), tokens(60)
    wanted = model(ids).logits
    caches = [BoundedCache(model, 24), BoundedCache(model, 24)]
    fed(model, caches[0], ids[:, :40], 20)
    other = way(model)
    assert hooks(other) == 0
    assert hooks(model) > 0
    assert torch.equal(other(ids).logits, wanted)
    with pytest.raises(RuntimeError, match="created for"):
        other(ids[:, 40:], past_key_values=caches[0])
    # Copies have caches of their own, and the original's goes on.
    fed(other, BoundedCache(other, 24), ids, 20)
    assert fed(model, caches[0], ids[:, 40:], 20).isfinite().all()
    assert caches[1].get_seq_length() == 0


def test_hooks_of_others_are_copied() -> None:
    model = tiny()
    model.base_model.register_forward_hook(_nothing, always_call=True)
    cache = BoundedCache(model, 24)
    other = copy.deepcopy(model)
    assert [*other.base_model._forward_hooks.values()] == [_nothing]
    assert len(other.base_model._forward_hooks_always_called) == 1
    cache.close()
    assert hooks(model) == 2


def _nothing(module: Any, args: Any, output: Any) -> None:
    pass


@pytest.mark.parametrize("close", [BoundedCache.close, lambda cache: None])
def test_the_last_cache_takes_all_traces_along(close: Callable[[BoundedCache], None]) -> None:
    model = tiny()
    first, second = BoundedCache(model, 24), BoundedCache(model, 24)
    close(first)
    del first
    gc.collect()
    assert hooks(model) > 0
    assert fed(model, second, tokens(40), 20).isfinite().all()
    assert hooks(copy.deepcopy(model)) == 0
    close(second)
    del second
    gc.collect()
    assert hooks(model) == 0


def test_a_model_is_let_go_with_its_cache() -> None:
    import weakref

    model = tiny()
    cache = BoundedCache(model, 24)
    gone = weakref.ref(model.base_model)
    del model, cache
    gc.collect()
    assert gone() is None


def test_a_stored_model_is_read_where_this_package_is_not(tmp_path: Path) -> None:
    model = tiny()
    cache = BoundedCache(model, 24)
    torch.save(model, tmp_path / "model.pt")
    code = "import sys, torch; torch.load(sys.argv[1], weights_only=False); assert 'bmrt' not in sys.modules"
    preloaded.run("-c", code, str(tmp_path / "model.pt"), check=True, cwd=tmp_path)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("name", [*STRATEGIES, "hybrid"])
@pytest.mark.parametrize("positions", ["absolute", "compact"])
def test_a_cache_and_its_model_are_stored_together(name: str, positions: Any) -> None:
    model, ids = tiny(), tokens(60)
    strategy = Hybrid(build_strategy("exact"), build_strategy("frequency_rank"))
    cache = BoundedCache(model, 24, strategy=strategy if name == "hybrid" else name, positions=positions)
    fed(model, cache, ids[:, :40], 20)
    for way in WAYS:
        both = way({"model": model, "cache": cache})
        found = fed(both["model"], both["cache"], ids[:, 40:], 10)
        assert torch.equal(found, fed(model, copy.deepcopy(cache), ids[:, 40:], 10))
        assert both["model"].base_model is not model.base_model
    assert cache.get_seq_length() == 40


def test_a_cache_that_is_copied_first_stays_with_its_model() -> None:
    model, ids = tiny(), tokens(60)
    cache = BoundedCache(model, 24)
    both = copy.deepcopy({"cache": cache, "model": model})
    assert fed(model, both["cache"], ids, 20).isfinite().all()
    assert both["model"].base_model is not model.base_model
    with torch.no_grad():
        next(both["model"].parameters()).zero_()
    assert next(model.parameters()).abs().max() > 0
