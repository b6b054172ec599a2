"""The model's configuration: the keys of the original README keep their names and values; the others switch parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from attentions import BACKENDS, resolve
from attentions.common.settings import require
from harness.config.errors import mistakes_of
from harness.config.grid import Checked, Size
from harness.config.yaml_source import ConfigError

Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
MemoryName = Literal["hash_evict", "compressed", "infini"]

A_SIZE = "an integer of at least 1"
A_SEED = "an integer from 0 to 2**32 - 1"
OR_DERIVED = "null (derived) or an integer of at least 1"
A_SWITCH = "true or false"


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class ModelConfig(Checked):
    """Configuration of the language model. Frozen; unknown keys are rejected.

    `weight_tied_layers` is the number of weight sets shared by the `n_layers` layers: layer i uses set i modulo that
    number. None gives each layer its own. With `use_ponder`, one pass over the sets is a step, after which a position
    may halt. `bucket_size` sets the attention's setting of that name, or `window` if it has that instead. Defaults for
    None: `feed_forward_dim` is 8/3 of d_model, `latent_dim` the width of 4 heads, and `rope_dim` half the width of a
    head, as published. `query_latent_dim` None leaves queries uncompressed. `memory` lists memories in the order in
    which tokens pass through them after they leave a segment of `memory_segment` tokens.
    """

    vocab_size: Size = Field(default=32_000, description=A_SIZE)
    d_model: Size = Field(default=768, description=A_SIZE)
    n_heads: Size = Field(default=12, description=A_SIZE)
    n_kv_heads: Size = Field(default=4, description=A_SIZE)
    n_layers: Size = Field(default=24, description=A_SIZE)
    max_seq_len: Size = Field(default=131_072, description=A_SIZE)
    bucket_size: Size = Field(default=128, description=A_SIZE)
    use_ponder: bool = Field(default=True, description=A_SWITCH)
    weight_tied_layers: Size | None = Field(
        default=6, description="null (each layer has its own) or an integer of at least 1"
    )
    feed_forward_dim: Size | None = Field(default=None, description=OR_DERIVED)

    attention: str = Field(
        default="lsh_v2" if "lsh_v2" in BACKENDS else "flash", description="a backend's name or package.module:Class"
    )
    attention_settings: dict[str, Any] = Field(default_factory=dict, description="a mapping of the backend's settings")
    causal: bool = Field(default=True, description=A_SWITCH)
    auxiliary_weight: float = Field(default=0.01, ge=0, description="a number of at least 0")

    latent: bool = Field(default=True, description=A_SWITCH)
    latent_dim: Size | None = Field(default=None, description=OR_DERIVED)
    query_latent_dim: Size | None = Field(default=None, description="null (none) or an integer of at least 1")
    rope_dim: Size | None = Field(default=None, description=OR_DERIVED)
    rope_base: Rate = Field(default=500_000.0, description="a number above 0")
    absorbed_decoding: bool = Field(default=True, description=A_SWITCH)

    reversible: bool = Field(default=True, description=A_SWITCH)
    gradient_checkpoint: bool = Field(default=False, description=A_SWITCH)
    feed_forward_chunk: Size = Field(default=8192, description=A_SIZE)

    ponder_prior: float = Field(default=0.4, gt=0, lt=1, description="a number between 0 and 1")
    ponder_weight: float = Field(default=0.01, ge=0, description="a number of at least 0")
    ponder_inference: Literal["threshold", "sample", "all"] = Field(
        default="threshold", description="threshold, sample or all"
    )
    ponder_threshold: float = Field(default=0.5, gt=0, le=1, description="a number above 0 and at most 1")

    memory: Annotated[tuple[MemoryName, ...], BeforeValidator(_tuple)] = Field(
        default=(), description="a list of hash_evict, compressed and infini, each at most once"
    )
    memory_segment: Size = Field(default=4096, description=A_SIZE)
    memory_slots: Size = Field(default=1024, description=A_SIZE)
    memory_bits: int = Field(default=16, ge=1, le=62, description="an integer from 1 to 62")
    compression_rate: Size = Field(default=4, description=A_SIZE)
    infini_rule: Literal["linear", "delta"] = Field(default="delta", description="linear or delta")

    seed: Seed = Field(default=0, description=A_SEED)

    @property
    def head_dim(self) -> int:
        """Width of a value head, and of a key head excluding its rotary part."""
        return self.d_model // self.n_heads

    @property
    def rotary_dim(self) -> int:
        """Number of key coordinates that are rotated by position; all of them without latents."""
        return (self.rope_dim or max(2, self.head_dim // 4 * 2)) if self.latent else self.head_dim

    @property
    def key_dim(self) -> int:
        """Width of a query or key head as the attention sees it."""
        return self.head_dim + self.rotary_dim if self.latent else self.head_dim

    @property
    def kv_latent_dim(self) -> int:
        """Width of the latent from which keys and values are computed."""
        return self.latent_dim or 4 * self.head_dim

    @property
    def feed_forward_width(self) -> int:
        """Inner width of the feed-forward layer."""
        return self.feed_forward_dim or -(-8 * self.d_model // 3)

    @property
    def weight_sets(self) -> int:
        """Number of distinct sets of layer weights."""
        return self.weight_tied_layers or self.n_layers

    @property
    def passes(self) -> int:
        """Number of passes over the weight sets; with pondering, the maximum number of steps per position."""
        return self.n_layers // self.weight_sets

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        resolve(self.attention)
        heads, layers, sets = self.n_heads, self.n_layers, self.weight_sets
        checks = [
            (self.d_model % heads == 0, "d_model", self.d_model, f"a multiple of n_heads={heads}"),
            (heads % self.n_kv_heads == 0, "n_kv_heads", self.n_kv_heads, f"a divisor of n_heads={heads}"),
            (layers % sets == 0, "weight_tied_layers", sets, f"null or a divisor of n_layers={layers}"),
            (
                not self.use_ponder or self.passes > 1,
                "use_ponder",
                True,
                "false if layers run once over the weights",
            ),
            (self.rotary_dim % 2 == 0, "rope_dim", self.rotary_dim, "even, since rotary embeddings rotate pairs"),
            *self._memory_checks(),
        ]
        for holds, name, value, allowed in checks:
            require(holds, name, value, allowed)
        return self

    def _memory_checks(self) -> list[tuple[bool, str, object, str]]:
        """Constraints on the settings of long-term memory; empty without one."""
        if not self.memory:
            return []
        rate, segment, slots = self.compression_rate, self.memory_segment, self.memory_slots
        pooled = segment // rate
        return [
            (len(set(self.memory)) == len(self.memory), "memory", self.memory, "without duplicates"),
            (self.causal, "causal", self.causal, "true with a memory, which reads only the past"),
            (segment % rate == 0, "memory_segment", segment, f"a multiple of compression_rate={rate}"),
            (slots % rate == 0, "memory_slots", slots, f"a multiple of compression_rate={rate}"),
            (pooled <= slots, "memory_slots", slots, f"at least memory_segment / compression_rate = {pooled}"),
        ]


def model_config(**values: Any) -> ModelConfig:
    """Return a validated configuration. Raises ConfigError, a ValueError with one line per mistake."""
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(mistakes_of(error, ModelConfig, values), "the model's configuration") from error
