"""Codes are those of whole float32 products, and modules that select keep their tensors through every conversion."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attentions import build
from attentions.buckets.hashing import BitSamplingHash, SimHash
from attentions.lsh_v2.hashing import LearnedHash
from hyper_attn.angular_lsh import AngularLSH
from hyper_attn.hyper_attn import HyperAttention
from transformer_vq.kmeans import kmeans, nearest
from transformer_vq.nn.vq import VectorQuantiser
from transformer_vq.precision import Selector, exact_products, in_own_dtype

G, D = 2, 64
CPU = torch.device("cpu")
MKLDNN: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.fixture
def reduced() -> Iterator[None]:
    """Float32 products in bfloat16 where the processor has them."""
    before = MKLDNN.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")
    MKLDNN.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


class Products(TorchDispatchMode):
    """What float32 products run with; the precision itself changes results on some processors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.precisions: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("mm", "linear")) and args[0].dtype == torch.float32:
            self.precisions.add(MKLDNN.fp32_precision)
        return func(*args, **(kwargs or {}))


def vectors(n: int = 2500, dtype: torch.dtype = torch.float32) -> Tensor:
    """(1, G, n, D) of a fixed seed."""
    return torch.randn(1, G, n, D, generator=torch.Generator().manual_seed(2)).to(dtype)


def _balanced(family: type[SimHash | BitSamplingHash], bits: int) -> SimHash | BitSamplingHash:
    hashed = family(G, D, bits=bits, tables=2, seed=0)
    hashed.balance(vectors(511) + 0.3)
    return hashed


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "simhash": lambda: SimHash(G, D, bits=12, tables=2, seed=0),
    "simhash, balanced": lambda: _balanced(SimHash, 16),
    "bit sampling": lambda: BitSamplingHash(G, D, bits=12, tables=2, seed=0),
    "bit sampling, balanced": lambda: _balanced(BitSamplingHash, 16),
    "learned": lambda: LearnedHash(G, D, rounds=3, hash_dim=8, seed=0),
    "angular": lambda: AngularLSH(D, 16),
    "reformer": lambda: build("reformer", heads=G, head_dim=D, max_len=4096),
    "vq": lambda: build("vq", heads=G, head_dim=D, codes=512),
    "quantiser": lambda: VectorQuantiser(G, 512, D).eval(),
}


def codes(module: Any, x: Tensor) -> Tensor:
    """The codes that a module gives vectors."""
    if isinstance(module, VectorQuantiser):
        return module(x).codes
    if hasattr(module, "key_book"):
        return nearest(x, module.key_book)  # as where there is no native kernel
    return module.codes(x) if hasattr(module, "codes") else module(x)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_codes_do_not_depend_on_autocast(make: Callable[[], nn.Module]) -> None:
    module, x = make(), vectors()
    want = codes(module, x)
    assert len(want.unique()) > 30
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(codes(module, x), want)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_codes_do_not_depend_on_the_precision_of_products(
    make: Callable[[], nn.Module], request: pytest.FixtureRequest
) -> None:
    module, x = make(), vectors()
    want = codes(module, x)
    request.getfixturevalue("reduced")
    with Products() as products:
        assert torch.equal(codes(module, x), want)
    assert "bf16" not in products.precisions
    assert torch.get_float32_matmul_precision() == "medium"  # as it was set


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_converted_module_has_the_codes_of_float32(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    module, x = make(), vectors(dtype=dtype)
    want = codes(module, x.float())
    for converted in (copy.deepcopy(module).to(dtype), copy.deepcopy(module).double().to(dtype)):
        assert torch.equal(codes(converted, x), want)
        assert torch.equal(codes(converted.float(), x), want)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_codes_of_a_prefix_or_a_batch_are_those_of_the_whole(make: Callable[[], nn.Module]) -> None:
    module, x = make(), vectors(dtype=torch.float64)
    whole = codes(module, x)
    for n in (1, 7, 1111):
        assert torch.equal(codes(module, x[:, :, :n]), whole[..., :n])
    assert torch.equal(codes(module, torch.cat((x.flip(2), x)))[..., 1:, :, :], whole)


@pytest.mark.parametrize("family", [SimHash, BitSamplingHash])
def test_balancing_does_not_depend_on_autocast(family: type[SimHash | BitSamplingHash]) -> None:
    want = _balanced(family, 12).thresholds
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = _balanced(family, 12).thresholds
    assert torch.equal(got, want)


def test_codebooks_do_not_depend_on_autocast_or_the_precision_of_products(request: pytest.FixtureRequest) -> None:
    def learn() -> Tensor:
        return kmeans(vectors()[0], 32, generator=torch.Generator().manual_seed(0))

    want = learn()
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(learn(), want)
    request.getfixturevalue("reduced")
    with Products() as products:
        assert torch.equal(learn(), want)
    assert products.precisions == {"ieee"}


@pytest.mark.parametrize("make", [m for name, m in MAKERS.items() if name not in ("vq", "quantiser")])
def test_a_module_of_another_seed_takes_the_functions_of_a_state(make: Callable[[], nn.Module]) -> None:
    source, x = make(), vectors()
    other = copy.deepcopy(source)
    for tensor in other.state_dict().values():
        tensor.copy_(torch.zeros_like(tensor))
    assert not torch.equal(codes(other, x), codes(source, x))
    other.load_state_dict(source.state_dict())
    assert torch.equal(codes(other, x), codes(source, x))


class Planes(Selector):
    """A selector with one tensor that old states hold and one that they do not."""

    added = ("planes",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("planes", torch.full((3,), 1 / 3))
        self.register_buffer("thresholds", torch.full((3,), 1 / 3))

    planes: Tensor
    thresholds: Tensor


def test_a_state_of_an_earlier_version_loads_without_what_was_added() -> None:
    module = Planes()
    old = {"thresholds": torch.ones(3)}
    module.load_state_dict(old)
    assert torch.equal(module.thresholds, torch.ones(3))
    assert torch.equal(module.planes, Planes().planes)
    with pytest.raises(RuntimeError, match=r'Missing key.*"thresholds"'):
        module.load_state_dict({"planes": torch.ones(3)})


def test_a_state_that_names_its_version_must_hold_what_was_added() -> None:
    state = Planes().state_dict()
    del state["planes"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"planes"'):
        Planes().load_state_dict(state)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: nn.Sequential(x, nn.Linear(2, 2))])
def test_conversions_move_a_selector_and_never_round_it(wrap: Callable[[nn.Module], nn.Module]) -> None:
    selector = Planes()
    module = wrap(selector)
    module.half()
    module.bfloat16()
    module.to("cpu", torch.float16)
    assert selector.planes.dtype == torch.float32
    assert torch.equal(selector.planes, Planes().planes)
    module.double()
    assert selector.planes.dtype == torch.float64
    module.half()
    assert torch.equal(selector.planes, Planes().planes.double())
    module.float()
    assert selector.planes.dtype == torch.float32
    module.half().to("meta")
    assert selector.planes.is_meta
    if isinstance(module, nn.Sequential):
        assert module[1].weight.dtype == torch.float16


def test_hyper_attention_samples_as_the_state_says() -> None:
    one, two = (HyperAttention(16, 3, 8, 8, 16, seed=seed) for seed in (1, 2))
    q, k, v = (torch.randn(1, 2, 64, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    assert not torch.equal(two(q, k, v), one(q, k, v))
    two.load_state_dict(one.state_dict())
    assert torch.equal(two(q, k, v), one(q, k, v))
    two.load_state_dict({})  # what HyperAttention's state was before
    assert torch.equal(two(q, k, v), one(q, k, v))


def test_products_are_whole_until_the_last_thread_leaves(reduced: None) -> None:
    backend, inside, leave = MKLDNN, threading.Event(), threading.Event()
    seen: list[str] = []

    def other() -> None:
        with exact_products(CPU):
            inside.set()
            leave.wait(60)
            seen.append(backend.fp32_precision)

    thread = threading.Thread(target=other)
    with exact_products(CPU):
        thread.start()
        assert inside.wait(60)
        with exact_products(CPU):
            seen.append(backend.fp32_precision)
    seen.append(backend.fp32_precision)
    leave.set()
    thread.join()
    assert seen == ["ieee"] * 3
    assert backend.fp32_precision == "bf16"


def test_products_go_back_to_their_precision_after_an_error(reduced: None) -> None:
    with pytest.raises(ZeroDivisionError), exact_products(CPU):
        raise ZeroDivisionError
    assert MKLDNN.fp32_precision == "bf16"


def test_a_function_in_its_own_dtype_ends_autocast_for_itself_alone() -> None:
    @in_own_dtype
    def product(name: str, x: Tensor) -> tuple[str, Tensor]:
        return name, x @ x

    x = torch.eye(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product("x", x)[1].dtype == torch.float32
        assert product("x", x=x)[1].dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    meta = torch.eye(3, device="meta")
    assert product("x", meta)[1].is_meta
