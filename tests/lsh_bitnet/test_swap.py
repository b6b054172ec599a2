"""The contract: every model with every attention, at prefill, in decoding and with padding; and nothing left behind."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, DynamicCache

from attentions import BACKENDS
from lsh_bitnet import attend_with, register
from lsh_bitnet.models import random_model
from tests import preloaded
from tests.lsh_bitnet.models import ARCHITECTURES, SMALL, can, close, logits, padded, positions, shared, tokens

EXACT = ("vanilla", "flash")
models = pytest.mark.parametrize("architecture", ARCHITECTURES)
backends = pytest.mark.parametrize("backend", BACKENDS)


def needs(backend: str, queries: int, keys: int) -> None:
    if not can(backend, queries, keys):
        pytest.skip(f"{backend} cannot attend with {queries} queries to {keys} keys")


@models
@pytest.mark.parametrize("backend", EXACT)
def test_exact_attention_gives_the_models_own_logits(architecture: str, backend: str) -> None:
    model, ids = shared(architecture), tokens()
    want = logits(model, ids)
    with attend_with(model, backend):
        got = logits(model, ids)
    assert close(got, want)


@models
@pytest.mark.parametrize("backend", EXACT)
def test_exact_attention_gives_the_models_own_logits_with_padding(architecture: str, backend: str) -> None:
    model, (ids, mask) = shared(architecture), padded()
    want = logits(model, ids, attention_mask=mask)
    with attend_with(model, backend):
        got = logits(model, ids, attention_mask=mask)
    assert close(got[mask.bool()], want[mask.bool()])


@models
@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("padding", [False, True])
def test_exact_attention_generates_the_models_own_tokens(architecture: str, backend: str, padding: bool) -> None:
    model, (ids, mask) = shared(architecture), padded() if padding else padded((61, 61))
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    want = model.generate(ids, attention_mask=mask, **settings)
    with attend_with(model, backend):
        assert torch.equal(model.generate(ids, attention_mask=mask, **settings), want)


@models
@backends
def test_every_attention_prefills(architecture: str, backend: str) -> None:
    needs(backend, 61, 61)
    model, ids = shared(architecture), tokens()
    with attend_with(model, backend, **SMALL.get(backend, {})):
        got = logits(model, ids)
    assert torch.isfinite(got).all()
    if backend not in EXACT and backend != "hyper":  # which is exact below its shortest length
        assert not close(got, logits(model, ids), 1e-2)


@models
@backends
def test_padding_changes_nothing_in_the_rows_it_pads(architecture: str, backend: str) -> None:
    needs(backend, 61, 61)
    model, (ids, mask) = shared(architecture), padded()
    with attend_with(model, backend, **SMALL.get(backend, {})):
        together = logits(model, ids, attention_mask=mask, position_ids=positions(mask))
        alone = logits(model, ids[1:, -37:])
    assert close(together[1:, -37:], alone, 1e-4)


@models
@backends
def test_decoding_with_a_cache_gives_the_logits_of_a_prefill(architecture: str, backend: str) -> None:
    needs(backend, 3, 61)
    if BACKENDS[backend].causality != "strict":
        pytest.skip(f"{backend} selects keys by what comes later")
    model, ids = shared(architecture), tokens()
    with attend_with(model, backend, **SMALL.get(backend, {})):
        whole = logits(model, ids)
        cache = DynamicCache(config=model.config)
        pieces = [logits(model, piece, past_key_values=cache, use_cache=True) for piece in ids.split([50, 7, 3, 1], 1)]
    assert close(torch.cat(pieces, dim=1), whole, 1e-4)


@backends
def test_what_an_attention_cannot_do_is_refused_in_words(backend: str) -> None:
    if can(backend, 1, 62):
        pytest.skip(f"{backend} decodes")
    model, ids = shared("llama"), tokens()
    with attend_with(model, backend), pytest.raises(ValueError, match=rf"{backend} cannot be used here: \w+"):
        model.generate(ids, max_new_tokens=2, do_sample=False)


def test_a_bfloat16_model_keeps_its_dtype() -> None:
    model: Any = random_model("llama")
    model.to(torch.bfloat16)
    want = logits(model, tokens())
    for backend in ("flash", "simhash"):
        with attend_with(model, backend):
            got = logits(model, tokens())
        assert got.dtype == torch.bfloat16
    with attend_with(model, "flash"):
        assert close(logits(model, tokens()).float(), want.float(), 5e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "bitnet"])
@backends
def test_every_attention_works_under_autocast(architecture: str, backend: str, dtype: torch.dtype) -> None:
    needs(backend, 61, 61)
    model, (ids, mask) = random_model(architecture), padded()
    real, want = mask.bool(), logits(model, ids, attention_mask=mask)
    with torch.autocast("cpu", dtype):
        own = logits(model, ids, attention_mask=mask)
    with attend_with(model, backend, count=True, **SMALL.get(backend, {})), torch.autocast("cpu", dtype):
        out = model(ids, attention_mask=mask, labels=ids.where(real, -100))
        out.loss.backward()
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    if backend in EXACT:  # no farther from float32 than the model's own attention is under autocast
        allowed = 2 * float((own[real].float() - want[real]).norm() / want[real].norm())
        assert close(out.logits[real].float(), want[real], allowed)


def test_gradients_flow_through_a_swapped_attention() -> None:
    model, ids = random_model("llama"), tokens()
    want = torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()))
    with attend_with(model, "flash"):
        got = torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()))
    assert all(close(a, b, 1e-4) for a, b in zip(got, want, strict=True))


def test_the_layers_own_scale_is_used() -> None:
    model: Any = random_model("llama")
    ids = tokens()
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.01
    want = logits(model, ids)
    assert not close(want, logits(shared("llama"), ids), 1e-2)
    with attend_with(model, "flash"):
        assert close(logits(model, ids), want)


def test_layers_draw_different_hash_functions() -> None:
    seen: dict[int, Any] = {}
    model = shared("llama")
    with attend_with(model, "simhash", bits=4) as swap:
        logits(model, tokens())
        function: Any = AttentionInterface()[model.config._attn_implementation]
        for layer in model.model.layers:
            seen[layer.self_attn.layer_idx] = function._built[layer.self_attn]
    assert swap.log is None
    assert not torch.equal(*(attention.hash.planes for attention in seen.values()))


def test_dense_layers_stay_exact() -> None:
    model, ids = shared("llama"), tokens()
    want = logits(model, ids)
    poor: dict[str, Any] = {"bits": 2, "window": 1, "local": 1}
    with attend_with(model, "simhash", dense_layers=[0, -1], **poor):
        assert close(logits(model, ids), want)
    with attend_with(model, "simhash", dense_layers=[1], count=True, **poor) as swap:
        assert not close(logits(model, ids), want, 1e-2)
    assert swap.log is not None
    assert [swap.log.layers[layer].ratio == 1 for layer in (0, 1)] == [False, True]


def test_the_models_own_attention_is_back_after_the_block_and_after_an_error() -> None:
    model, ids = random_model("llama"), tokens()
    before, names = model.config._attn_implementation, registered()
    want = logits(model, ids)
    with pytest.raises(RuntimeError, match="inside"), attend_with(model, "simhash", bits=6):
        raise RuntimeError("inside")
    assert model.config._attn_implementation == before
    assert registered() == names
    assert torch.equal(logits(model, ids), want)


def test_a_one_way_swap_stays_until_it_is_restored() -> None:
    model, ids = random_model("llama"), tokens()
    want, names = logits(model, ids), registered()
    swap = attend_with(model, "simhash", bits=2, window=4, local=2)
    assert not close(logits(model, ids), want, 1e-2)
    swap.restore()
    swap.restore()
    assert torch.equal(logits(model, ids), want)
    assert registered() == names


def test_swaps_nest() -> None:
    model, ids = shared("llama"), tokens()
    with attend_with(model, "simhash", **SMALL["simhash"]):
        outer = logits(model, ids)
        with attend_with(model, "flash"):
            assert not close(logits(model, ids), outer, 1e-2)
        assert torch.equal(logits(model, ids), outer)


def test_swaps_may_end_in_any_order() -> None:
    model, ids, names = random_model("llama"), tokens(), registered()
    own, before = logits(model, ids), model.config._attn_implementation
    outer = attend_with(model, "simhash", **SMALL["simhash"])
    inner = attend_with(model, "flash")
    outer.restore()
    assert close(logits(model, ids), own)
    assert model.config._attn_implementation != before
    inner.restore()
    assert torch.equal(logits(model, ids), own)
    assert registered() == names


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "of its configuration": lambda model: like(AutoModelForCausalLM.from_config(copy.deepcopy(model.config)), model),
}


def like(new: Any, model: Any) -> Any:
    new.load_state_dict(model.state_dict())
    return new.eval()


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_made_inside_a_swap_goes_on_as_it_was_made(make: Callable[[Any], Any]) -> None:
    model, (ids, mask), names = random_model("llama"), padded(), registered()
    own = logits(model, ids, attention_mask=mask, position_ids=positions(mask))
    with attend_with(model, "simhash", count=True, **SMALL["simhash"]) as swap:
        want = logits(model, ids, attention_mask=mask, position_ids=positions(mask))
        assert swap.log is not None
        counted = swap.log.made
        made = make(model)
        assert torch.equal(logits(made, ids, attention_mask=mask, position_ids=positions(mask)), want)
        assert swap.log.made == counted
    assert torch.equal(logits(made, ids, attention_mask=mask, position_ids=positions(mask)), want)
    assert torch.equal(logits(model, ids, attention_mask=mask, position_ids=positions(mask)), own)
    with attend_with(made, "flash"):
        assert close(logits(made, ids, attention_mask=mask)[mask.bool()], own[mask.bool()])
    assert torch.equal(logits(made, ids, attention_mask=mask, position_ids=positions(mask)), want)
    del made
    gc.collect()
    assert registered() == names


def test_a_copy_of_a_copy_outlives_both() -> None:
    model, ids = random_model("llama"), tokens()
    with attend_with(model, "simhash", **SMALL["simhash"]):
        want = logits(model, ids)
        first = copy.deepcopy(model)
    second = pickle.loads(pickle.dumps(first))
    del first, model
    gc.collect()
    assert torch.equal(logits(second, ids), want)


def test_a_model_pickled_inside_a_swap_is_read_in_another_process(tmp_path: Path) -> None:
    model, ids = random_model("llama"), tokens(1)
    with attend_with(model, "simhash", **SMALL["simhash"]):
        torch.save((model, ids, logits(model, ids)), tmp_path / "swapped.pt")
    code = (
        "import sys, torch; model, ids, want = torch.load(sys.argv[1], weights_only=False);"
        "assert torch.equal(model(ids).logits, want)"
    )
    preloaded.run("-c", code, str(tmp_path / "swapped.pt"), check=True)


def test_a_model_saved_inside_a_swap_is_read_as_its_own(tmp_path: Path) -> None:
    model, ids = random_model("llama"), tokens()
    own = logits(model, ids)
    with attend_with(model, "simhash", **SMALL["simhash"]):
        model.save_pretrained(tmp_path)
    assert "attentions_" not in (tmp_path / "config.json").read_text()
    assert close(logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), own)


def test_a_swap_that_nobody_holds_does_not_keep_its_model() -> None:
    model, names = random_model("llama"), registered()
    attend_with(model, "simhash")
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None
    assert registered() == names


def test_two_models_are_swapped_independently() -> None:
    one, two, ids = random_model("llama", seed=1), random_model("llama", seed=2), tokens()
    want = logits(two, ids)
    with attend_with(one, "simhash", **SMALL["simhash"]):
        assert torch.equal(logits(two, ids), want)


def test_quantised_linears_stay_what_they_are() -> None:
    from transformers.integrations.bitnet import AutoBitLinear

    model = shared("bitnet")
    linears = [module for module in model.modules() if isinstance(module, AutoBitLinear)]
    assert len(linears) == 2 * 7
    with attend_with(model, "simhash", **SMALL["simhash"]):
        logits(model, tokens())
        assert [module for module in model.modules() if isinstance(module, AutoBitLinear)] == linears
    assert len(linears[0].weight.unique()) > 3  # rounded as it runs, not in place


def test_registered_names_work_as_attn_implementation() -> None:
    before = registered()
    names = register({"simhash": {"bits": 2, "window": 4, "local": 2}})
    try:
        assert "attentions_bit_sampling" in names
        model, ids = random_model("llama"), tokens()
        want = logits(model, ids)
        model.set_attn_implementation("attentions_exact")
        assert close(logits(model, ids), want)
        fresh = AutoModelForCausalLM.from_config(model.config, attn_implementation="attentions_simhash").eval()
        fresh.load_state_dict(model.state_dict())
        with attend_with(model, "simhash", bits=2, window=4, local=2):
            assert torch.equal(logits(fresh, ids), logits(model, ids))
    finally:
        for name in names:
            AttentionInterface._global_mapping.pop(name)
            AttentionMaskInterface._global_mapping.pop(name)
    assert registered() == before


def registered() -> list[list[str]]:
    return [sorted(AttentionInterface._global_mapping), sorted(AttentionMaskInterface._global_mapping)]


def test_importing_the_package_registers_nothing() -> None:
    code = (
        "from transformers import AttentionInterface as A, AttentionMaskInterface as M; before = set(A()), set(M());"
        "import lsh_bitnet; assert (set(A()), set(M())) == before"
    )
    preloaded.run("-c", code, check=True)


def test_an_unknown_backend_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'simhas'; did you mean simhash\?"):
        attend_with(shared("llama"), "simhas")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bitz": 4}, "has no setting 'bitz'; did you mean bits"),
        ({"bits": 99}, "bits=99 is not allowed"),
        ({"heads": 2}, r"settings \['heads'\] are not allowed: these are set by the model:"),
        ({"dense_layers": [2]}, r"dense_layers=\[2\] is not allowed: the model's layers are 0 to 1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_swapped(options: dict[str, Any], message: str) -> None:
    model, before = shared("llama"), registered()
    with pytest.raises(ValueError, match=message):
        attend_with(model, "simhash", **options)
    assert registered() == before


def test_settings_of_an_unknown_backend_are_not_registered() -> None:
    before = registered()
    with pytest.raises(ValueError, match=r"settings of \['simhsh'\] are not allowed"):
        register({"simhsh": {}})
    assert registered() == before


def test_a_model_that_does_not_look_its_attention_up_is_refused() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model, before = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)), registered()
    with pytest.raises(ValueError, match="BloomForCausalLM is not allowed"):
        attend_with(model, "flash")
    assert registered() == before
