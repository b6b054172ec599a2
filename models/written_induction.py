"""Writes, without training, a two-layer Llama that continues a text the way it continued after the same words before.

    python -m models.written_induction                  # writes models/written-induction/
    python -m models.written_induction --out DIR

The weights implement an induction head in two attention layers (Olsson et al. 2022, "In-context learning and induction
heads", https://arxiv.org/abs/2209.11895):

* A byte is a word of the Nordstrom-Robinson code: 16 signs, 256 words, any two with cosine at most 1/4. Bytes
  b and b + 128 are each other's negative, so no two ASCII bytes are.
* Layer 1: query head h copies the byte h + 1 positions back. Its queries and keys consist of biases only, so RoPE
  makes the score a sum of cos(w (distance - h - 1)) over the fast frequencies w, which is largest at that distance.
* Layer 2, heads 4 to 7: compare the bytes up to the current position with those before every earlier byte, one term per
  byte, and write the byte found there. The heads compare different numbers of bytes: `MATCHED`. Codes are in the slow
  frequencies, which turn by less than 0.01 within 4,096 tokens, so distance does not matter.
* Layer 2, head 0 attends to its own position and subtracts the byte there, which makes room for the answer, because
  input and output embedding are one matrix.

The MLPs are zero. Nothing is random.
"""

from __future__ import annotations

from attentions.common.stopping import exit_on_signal, run_interruptible

if __name__ == "__main__":
    exit_on_signal()  # before the slow imports

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from harness.results.run_dir import require_folder
from lsh_bitnet.commands import Parser, run

BYTES = 256
CODE = 16  # number of signs in a byte's code
HEADS, KV_HEADS = 8, 2
SLOTS = HEADS + 1  # the byte itself, and one earlier byte per head
FAST, SLOW = 16, CODE * HEADS // 2  # numbers of coordinate pairs that RoPE turns fast and slowly
HEAD_DIM = 2 * (FAST + SLOW)
THETA = 1e30  # frequencies fall from 1 to 2e-6 over the fast pairs, and below 1e-6 over the slow ones
POINTED = 48.0  # score per fast frequency; the nearest other position is lower by 0.57 of this
PER_BYTE = 24.0  # score per matching byte; other bytes add at most a quarter of this

# Query head of layer 2 -> (bytes compared, weight of its answer). A longer match outvotes all shorter ones.
MATCHED = {4: (8, 1.0), 5: (5, 0.5), 6: (3, 0.2), 7: (2, 0.1)}
LOGIT = 0.6  # the logit of a byte's own code is about 16 times this


def codes() -> Float[Tensor, "256 16"]:
    """Return the Nordstrom-Robinson code as signs: the Gray map of the octacode; row b + 128 is minus row b."""
    first = [3, 1, 2, 1, 0, 0, 0]
    generator = torch.tensor([[*first[-shift:], *first[:-shift], 1] for shift in (7, 1, 2, 3)])
    digits = torch.cartesian_prod(*[torch.arange(4)] * 4)
    gray = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
    words = gray[digits @ generator % 4].flatten(1)
    half = words[words[:, 0] > 0]
    return torch.cat((half, -half))


def configuration() -> LlamaConfig:
    """Return the configuration: two layers of 8 query and 2 key/value heads, byte vocabulary, attention biases."""
    return LlamaConfig(
        vocab_size=BYTES + 3,  # pad, bos, and eos are zero vectors
        hidden_size=CODE * SLOTS,
        intermediate_size=1,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        attention_bias=True,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        pad_token_id=BYTES,
        bos_token_id=BYTES + 1,
        eos_token_id=BYTES + 2,
        dtype="float32",
    )


def build() -> LlamaForCausalLM:
    """Build the model and write its weights."""
    model = LlamaForCausalLM(configuration()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight[:BYTES, slot(0)] = codes()
        first, second = model.model.layers
        _copy_previous_bytes(first)  # type: ignore[arg-type]
        _answer_matches(second)  # type: ignore[arg-type]
        model.model.norm.weight.fill_(LOGIT)
    return model


def slot(back: int) -> slice:
    """Slice of the hidden state with the byte `back` positions back; slot 0 is the byte itself, later the answer."""
    return slice(CODE * back, CODE * (back + 1))


def _coordinates(head: int, pairs: slice, part: int) -> slice:
    """Rows of a projection for the coordinates `pairs` of a head; RoPE rotates part 0 together with part 1."""
    start = HEAD_DIM * head + HEAD_DIM // 2 * part
    return slice(start + pairs.start, start + pairs.stop)


def _copy_previous_bytes(layer: LlamaDecoderLayer) -> None:
    layer.input_layernorm.weight.fill_(SLOTS**-0.5)  # only slot 0 is filled, so the norm scales it to SLOTS**0.5
    for head in range(HEADS):
        _attend_back(layer.self_attn, head, distance=head + 1)
        _write_value(layer.self_attn, head, slot(head + 1), gain=1.0)


def _answer_matches(layer: LlamaDecoderLayer) -> None:
    layer.input_layernorm.weight.fill_(1)  # every slot holds signs, so the norm does not change them
    _attend_back(layer.self_attn, 0, distance=0)
    _write_value(layer.self_attn, 0, slot(0), gain=-1.0)
    for back in range(HEADS):
        _project(layer.self_attn.k_proj.weight, KV_HEADS - 1, back, read=slot(back + 1), weight=1.0)
    for head, (compared, gain) in MATCHED.items():
        for back in range(compared):
            score = PER_BYTE / CODE * HEAD_DIM**0.5  # the layer divides scores by HEAD_DIM**0.5
            _project(layer.self_attn.q_proj.weight, head, back, read=slot(back), weight=score)
        _write_value(layer.self_attn, head, slot(0), gain=gain)


def _attend_back(attention: LlamaAttention, head: int, *, distance: int) -> None:
    """Make the scores of `head` depend on distance only: queries are rotated by `distance`, and all keys are equal."""
    turn = distance * THETA ** (-torch.arange(FAST, dtype=torch.float64) / (HEAD_DIM // 2))
    strength = POINTED * HEAD_DIM**0.5
    real, imaginary = (_coordinates(head, slice(0, FAST), part) for part in (0, 1))
    attention.q_proj.bias[real] = (turn.cos() * strength).float()
    attention.q_proj.bias[imaginary] = (-turn.sin() * strength).float()
    attention.k_proj.bias[_coordinates(head * KV_HEADS // HEADS, slice(0, FAST), 0)] = 1


def _project(matrix: Tensor, head: int, back: int, *, read: slice, weight: float) -> None:
    """Project the code in slot `read` to the slow coordinates of `head` for the byte `back` positions back."""
    half = CODE // 2
    pairs = slice(FAST + half * back, FAST + half * (back + 1))
    for part in (0, 1):
        columns = slice(read.start + half * part, read.start + half * (part + 1))
        matrix[_coordinates(head, pairs, part), columns] = weight * torch.eye(half)


def _write_value(attention: LlamaAttention, head: int, where: slice, *, gain: float) -> None:
    """Write the byte that `head` attends to, times `gain`, into the hidden state at `where`."""
    group = head * KV_HEADS // HEADS
    attention.v_proj.weight[HEAD_DIM * group : HEAD_DIM * group + CODE, slot(0)] = torch.eye(CODE)
    attention.o_proj.weight[where, HEAD_DIM * head : HEAD_DIM * head + CODE] = gain * torch.eye(CODE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model's folder."""
    parser = Parser(prog="python -m models.written_induction", description="Write the weights of the induction model.")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "written-induction", help="output folder of the model"
    )
    given = parser.parse_args(arguments)

    def work() -> int:
        require_folder(given.out, "--out")
        build().save_pretrained(given.out)
        size = sum(file.stat().st_size for file in given.out.glob("*.safetensors"))
        print(f"{given.out}: {size:,} bytes of weights")
        return 0

    return run(parser, work)


if __name__ == "__main__":
    raise SystemExit(run_interruptible(main))
