"""What a call, a definition and a stream say of inputs that do not fit, and what they leave to others."""

from __future__ import annotations

import textwrap

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from attentions import BACKENDS, Attention, Problem, build
from attentions.vanilla import Vanilla
from tests import preloaded


def sample(*, batch: int = 2, length: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, 4, length, 8), torch.randn(batch, 2, length, 8), torch.randn(batch, 2, length, 5)


@pytest.fixture
def attention() -> Attention:
    return build("vanilla", heads=4, head_dim=8, kv_heads=2, value_dim=5).eval()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda q, k, v: (q, k, v[:, :, 1:]), r"v has shape \(2, 2, 12, 5\).* k of length 13 .* \(2, 2, 13, 5\)"),
        (lambda q, k, v: (q[:, 1:], k, v), r"q has shape \(2, 3, 13, 8\).* \(2, 4, 13, 8\), for heads=4, kv_heads=2"),
        (lambda q, k, v: (q, k[:1], v), r"k has shape \(1, 2, 13, 8\): with q of batch 2"),
        (lambda q, k, v: (q[0], k, v), r"q has shape \(4, 13, 8\): it must have four axes, \(B, H, N, D\)"),
        (
            lambda q, k, v: (q, k, v.double()),
            r"v is torch\.float64 and q is torch\.float32: q, k and v must have the same",
        ),
        (lambda q, k, v: (q, k.to("meta"), v), "k is on meta and q on cpu"),
        (
            lambda q, k, v: (q.long(), k.long(), v.long()),
            "dtype int64 is not supported; supported are float64, float32",
        ),
        (lambda q, k, v: (q, k[:, :, 9:], v[:, :, 9:]), "queries are the last of the keys' positions, so 13 queries"),
    ],
)
def test_refusal_names_the_tensor_and_what_is_allowed(attention: Attention, change, says: str) -> None:
    for call in (attention, attention.naive):
        with pytest.raises(ValueError, match=says):
            call(*change(*sample()))


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ([0, 14], "first holds 14: it must be from 0 to the number of keys, 13"),
        ([-1, 0], "first holds -1"),
        ([1], r"first is torch.int64 of shape \(1,\): it must hold one integer per sequence, shape \(2,\)"),
        ([0.0, 1.0], "first is torch.float32"),
    ],
)
def test_refusal_of_padding_says_where_it_may_end(attention: Attention, first: list, says: str) -> None:
    for call in (attention, attention.naive):
        with pytest.raises(ValueError, match=says):
            call(*sample(), first=torch.tensor(first))


@pytest.fixture(params=["vanilla", "mamba", "mamba2"])
def block(request: pytest.FixtureRequest) -> Module:
    return build(request.param, heads=2, head_dim=8).block(16).eval()


def test_blocks_refuse_what_does_not_fit() -> None:
    """In a process of its own: annotations that are checked, as in these tests, would refuse most of it before."""
    script = textwrap.dedent("""
        import torch
        from attentions import build

        x = torch.zeros(2, 13, 16)
        padding = {
            "first holds 14: it must be from 0 to": [0, 14],
            "first holds -1": [-1, 0],
            "first is torch.int64 of shape (1,)": [1],
            "first is torch.float32": [0.0, 1.0],
            "first is torch.bool": [True, False],
        }
        no_tensors = {"first is list: it must be a tensor": [0, 1], "first is int: it must be a tensor": 3}
        tokens = {
            "x has shape (2, 13, 15): it must be (B, N, 16)": x[..., 1:],
            "x has shape (13, 16)": x[0],
            "x has shape (1, 2, 13, 16)": x[None],
            "x is torch.float64 and the block's weights are torch.float32": x.double(),
            "x is torch.int64": x.long(),
            "x is on meta and the block's weights on cpu": x.to("meta"),
            "x has the layout torch.sparse_coo": x.to_sparse(),
            "x is NoneType: it must be a tensor": None,
            "x is list: it must be a tensor": [1],
        }
        wrong = {says: (x, torch.tensor(first)) for says, first in padding.items()}
        wrong |= {says: (x, first) for says, first in no_tensors.items()}
        wrong |= {says: (given, None) for says, given in tokens.items()}
        for name in ("vanilla", "mamba", "mamba2"):
            block = build(name, heads=2, head_dim=8).block(16).eval()
            for call in (block, block.naive):
                for says, (given, first) in wrong.items():
                    try:
                        call(given, first=first)
                    except ValueError as error:
                        assert says in str(error), f"{name}: {error}, not {says}"
                    else:
                        raise AssertionError(f"{name} takes what should be refused: {says}")
    """)
    done = preloaded.run("-W", "ignore", "-c", script)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("shape", [(0, 13, 16), (2, 0, 16), (0, 0, 16)])
@pytest.mark.parametrize("grad", [True, False])
def test_blocks_answer_nothing_to_nothing(block: Module, shape: tuple[int, ...], grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        for first in (None, torch.zeros(shape[0], dtype=torch.int64)):
            assert block(torch.zeros(shape), first=first).shape == shape
            assert block.naive(torch.zeros(shape), first=first).shape == shape  # type: ignore[operator]


def test_rows_outside_the_queries_are_refused(attention: Attention) -> None:
    for rows in ([13], [-1]):
        with pytest.raises(ValueError, match=rf"rows holds {rows[0]}: it must be from 0 to 12"):
            attention.naive(*sample(), rows=torch.tensor(rows))


def test_counts_and_calibration_are_checked_too() -> None:
    attention = build("simhash", heads=4, head_dim=8, kv_heads=2, value_dim=5, bits=3, balanced=True)
    q, k, v = sample()
    with pytest.raises(ValueError, match="k has shape"):
        attention.comparisons(q, k[:, :1])
    with pytest.raises(ValueError, match="v has shape"):
        attention.prepare(q, k, v[..., 1:])
    with pytest.raises(ValueError, match="a calibration sample needs at least one sequence and one position"):
        attention.prepare(q[:0], k[:0], v[:0])


def test_what_why_not_refuses_is_not_run() -> None:
    class Sundays(Vanilla):
        def why_not(self, problem: Problem) -> str:
            return "it only runs on Sundays"

        def forward(self, q: Tensor, k: Tensor, v: Tensor, *, first: Tensor | None = None) -> Tensor:
            raise AssertionError("it ran")

    with pytest.raises(ValueError, match="it only runs on Sundays"):
        Sundays(4, 8, kv_heads=2, value_dim=5)(*sample())


def test_stream_refuses_what_it_was_not_made_for(attention: Attention) -> None:
    stream = attention.stream(2)
    assert stream is not None
    with pytest.raises(ValueError, match="q has a batch of 3: the stream was created for 2"):
        stream.extend(*sample(batch=3))
    stream.extend(*sample())
    with pytest.raises(ValueError, match=r"q is torch.float64: the stream holds torch.float32"):
        stream.extend(*(x.double() for x in sample()))
    with pytest.raises(ValueError, match="index holds 2: it must be from 0 to 1"):
        stream.reorder(torch.tensor([0, 2]))
    stream.reorder(torch.tensor([1, 0, 1]))
    assert stream.batch == 3
    assert stream.extend(*sample(batch=3)).shape == (3, 4, 13, 5)


def test_stream_keeps_the_dtype_of_its_first_piece_under_autocast(attention: Attention) -> None:
    stream = attention.stream(2)
    assert stream is not None
    whole = [x.bfloat16() for x in sample(length=20)]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        first = stream.extend(*(x[:, :, :12].bfloat16() for x in whole))
        second = stream.extend(*(x[:, :, 12:].float() for x in whole))
    assert first.dtype == second.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat((first, second), dim=2), attention(*whole), rtol=2e-2, atol=2e-2)


def test_autocast_takes_the_dtype_of_the_inputs_or_its_own_where_they_differ(attention: Attention) -> None:
    q, k, v = sample()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, k, v).dtype == torch.float32
        assert attention(q, k, v.bfloat16()).dtype == torch.bfloat16
        assert attention(q.half(), k, v.bfloat16()).dtype == torch.bfloat16
        with pytest.raises(ValueError, match=r"k is torch\.float64"):  # autocast leaves float64 alone
            attention(q, k.double(), v)
    with pytest.raises(ValueError, match=r"v is torch\.bfloat16"):
        attention(q, k, v.bfloat16())


def test_calls_can_be_traced() -> None:
    """`torch.compile`, export, meta tensors and `vmap`, in a process without the hook that types are checked by."""
    script = textwrap.dedent("""
        import torch
        from attentions import build
        a = build("vanilla", heads=4, head_dim=8, kv_heads=2).eval()
        q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
        first = torch.tensor([0, 3])
        compiled = torch.compile(a, backend="eager", fullgraph=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(compiled(q, k, v), a(q, k, v))
        assert torch.equal(compiled(q, k, v, first=first), a(q, k, v, first=first))
        assert torch.equal(torch.export.export(a, (q, k, v)).module()(q, k, v), a(q, k, v))
        assert a(*(x.to("meta") for x in (q, k, v)), first=first.to("meta")).shape == q.shape
        one = lambda q, k, v: a(q[None], k[None], v[None])[0]
        assert torch.allclose(torch.func.vmap(one)(q, k, v), a(q, k, v), atol=1e-6)
    """)
    done = preloaded.run("-W", "ignore", "-c", script)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["flash", "hyper"])
@pytest.mark.parametrize("queries", [13, 5])
def test_vectors_need_not_lie_in_one_piece(name: str, queries: int) -> None:
    """torch's flash kernel for the CPU takes the last axis to be contiguous: it read neighbours, or would not run."""
    attention = build(name, heads=4, head_dim=8, kv_heads=2, value_dim=5).eval()
    q, k, v = (x.double() for x in sample())
    inputs = (q[:, :, 13 - queries :], k, v)
    apart = (x.mT.contiguous().mT for x in inputs)
    torch.testing.assert_close(attention(*apart), attention.naive(*inputs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
def test_sparse_tensors_are_refused_by_name(name: str) -> None:
    a = build(name, heads=2, head_dim=8, max_len=16).eval()
    q = torch.randn(1, 2, 5, 8)
    for which in range(3):
        given = [q, q, q]
        given[which] = q.to_sparse()
        with pytest.raises(ValueError, match=f"{'qkv'[which]} has the layout torch.sparse_coo"):
            a(*given)


def test_what_is_no_tensor_is_refused_by_name() -> None:
    """In a process of its own, since types are checked before the code under pytest."""
    program = """
        import torch
        from attentions import BACKENDS, build
        x = torch.zeros(1, 2, 5, 8)
        for name in BACKENDS:
            a = build(name, heads=2, head_dim=8, max_len=16).eval()
            calls = {"q": (None, x, x), "k": (x, [1], x), "v": (x, x, 3)}
            for call in (a, a.naive):
                for says, given in calls.items():
                    try:
                        call(*given)
                    except ValueError as error:
                        assert str(error).startswith(f"{says} is "), error
                try:
                    call(x, x, x, first=[0])
                except ValueError as error:
                    assert str(error) == "first is list: it must be a tensor", error
        print("tried")
    """
    done = preloaded.run("-c", textwrap.dedent(program))
    assert (done.stdout, done.stderr) == ("tried\n", "")


@pytest.mark.parametrize("name", BACKENDS)
def test_padding_of_a_layer_changes_no_token(name: str) -> None:
    """Positions, and so the hashes of rotated keys, count from the first real token."""
    layer = build(name, heads=4, head_dim=16, kv_heads=2).block(64).double().eval()
    x = torch.randn(2, 300, 64, dtype=torch.float64)
    padded = layer(x, first=torch.tensor([0, 100]))
    torch.testing.assert_close(padded[1:, 100:], layer(x[1:, 100:]), rtol=1e-9, atol=1e-10)


def test_settings_of_another_kind_are_refused_by_name() -> None:
    """In a process of its own, since types are checked before the code under pytest."""
    program = """
        from attentions import BACKENDS, build, settings_of
        nan, inf = float("nan"), float("inf")
        wrong = [("causal", "no"), ("causal", 0), ("causal", None), ("causal", []), ("seed", 2**70), ("heads", 2.0),
                 ("heads", "2"), ("heads", True), ("head_dim", 8.0), ("kv_heads", 1.0), ("value_dim", -1),
                 ("max_len", 0.5), ("scale", nan), ("scale", inf), ("scale", "1"), ("seed", 1.5), ("seed", None)]
        kinds = {"010", 1.5, b"x", object, None, (1.5,)}
        taken = {"None": None, "float": 1.5}
        for name in BACKENDS:
            own = [(setting, value) for setting, found in settings_of(BACKENDS[name]).items() for value in kinds
                   if setting not in ("heads", "head_dim", "causal") and setting not in dict(wrong)
                   and not any(part in taken and value == taken[part] for part in found.annotation.split(" | "))
                   and not (found.annotation == "str" and isinstance(value, str))]
            assert len(own) >= 4 or name in ("vanilla", "flash", "mamba"), own
            for setting, value in wrong + own:
                try:
                    build(name, **{"heads": 2, "head_dim": 8, setting: value})
                except ValueError as error:
                    if str(error).startswith(f"{setting}={value!r} is not allowed"):
                        continue
                    print(name, setting, value, error)
                else:
                    print(name, setting, value, "is taken")
            for size in (-1, 7.5, "8", True, None, 2**70):
                attention = build(name, heads=2, head_dim=8)
                for setting, call in (("model_dim", attention.block), ("batch", attention.stream)):
                    try:
                        call(size)
                    except ValueError as error:
                        if str(error).startswith(f"{setting}={size!r} is not allowed"):
                            continue
                    print(name, setting, size, "is taken")
        print("tried")
    """
    done = preloaded.run("-c", textwrap.dedent(program))
    assert (done.stdout, done.stderr) == ("tried\n", "")


def test_settings_of_numpy_and_of_users_are_taken() -> None:
    """In a process of its own, since types are checked before the code under pytest."""
    program = """
        import numpy as np
        import torch
        from attentions import build
        from attentions.vanilla import Vanilla

        class Usual(Vanilla):
            def __init__(self, *sizes: int, width: int = None, kind: int | str = "a", rate: float = 1, **others: bool):
                super().__init__(*sizes, **others)
                self.given = (width, kind, rate)

        half = np.float32(0.5)
        settings = {"heads": np.int32(2), "head_dim": np.int64(8), "bits": np.int64(3), "scale": half,
                    "causal": np.bool_(False), "seed": np.int64(1)}
        x = torch.randn(1, 2, 13, 8)
        own = build("simhash", heads=2, head_dim=8, bits=3, scale=0.5, causal=False, seed=1)
        print(torch.equal(build("simhash", **settings)(x, x, x), own(x, x, x)))
        print(Usual(2, 8, width=None, kind="b", rate=half).given == (None, "b", half))
        try:
            Usual(2, 8, width=0.5)
        except ValueError as error:
            print(error)
    """
    done = preloaded.run("-c", textwrap.dedent(program))
    told = "width=0.5 is not allowed: it must be an integer of at most 64 bits"
    assert (done.stdout.splitlines(), done.stderr) == (["True", "True", told], "")


@pytest.mark.parametrize("name", BACKENDS)
def test_draws_do_not_depend_on_the_default_dtype(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        other = build(name, heads=2, head_dim=8, seed=3).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    for key, value in build(name, heads=2, head_dim=8, seed=3).state_dict().items():
        assert torch.equal(value.double(), other[key].double()), key
