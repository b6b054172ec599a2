"""How to compress, in the words of the command line: one frozen record that builds strategies, plans and caches."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from attentions.base import require
from bmrt.budget import Budget
from bmrt.cache import BoundedCache, require_compatible
from bmrt.mass import require_backend
from bmrt.plan import MODES
from bmrt.strategies import STRATEGIES, Hybrid, Strategy, build_strategy
from bmrt.strategies.base import require_seed
from bmrt.strategies.ties import require_tie

LSH_MODES = ("frequency_rank", "magicpig_baseline")
BASELINES = ("random", "recent", "key_norm", "snapkv", "h2o")
SELECTORS = ("exact", "lsh", "hybrid", *BASELINES, "full")


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is kept.

    selector_type: "exact", "lsh" (by `lsh_mode`), "hybrid" (`hybrid_primary` takes hybrid_ratio of the global memory,
        `hybrid_secondary` the rest; each exact, lsh or a name in `STRATEGIES`), a baseline (random, recent, key_norm,
        snapkv, h2o), or "full": nothing is dropped.
    selector_mode: orders equal collision counts of lsh (l2, max_sim, mahalanobis, partitioned_centroid, none).
    compression_mode: "recursive" or "accumulate" (see `bmrt.plan`).
    backend: how attention mass is summed up, eager or flash; the numbers are the same.
    budget: tokens a layer and head; compression_ratio, if given, decides instead: this share of each prompt's tokens.
    protection_divisor: n; anchors and local window have budget // n tokens each.
    block_size: tokens of context a forward pass; during one, a layer holds budget, block and question at most.
    num_bits, num_tables: of the hash codes; a query meets a key in a table if all bits agree.
    positions: "absolute", or "compact" for lengths beyond those that the model was trained for.
    query_aware: show the question along with every block, so that it chooses; otherwise the latest tokens choose.
    seed: of hash functions and of random.

    Raises ValueError that names the setting, its value and what is allowed.
    """

    selector_type: str = "exact"
    lsh_mode: str = "frequency_rank"
    selector_mode: str = "l2"
    compression_mode: str = "recursive"
    backend: str = "eager"
    budget: int = 4096
    compression_ratio: float | None = None
    protection_divisor: int = 4
    block_size: int = 4096
    num_bits: int = 12
    num_tables: int = 20
    hybrid_primary: str = "exact"
    hybrid_secondary: str = "lsh"
    hybrid_ratio: float = 0.5
    positions: str = "absolute"
    query_aware: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.selector_type in SELECTORS, "selector_type", self.selector_type, f"one of {', '.join(SELECTORS)}")
        require(self.lsh_mode in LSH_MODES, "lsh_mode", self.lsh_mode, f"one of {', '.join(LSH_MODES)}")
        require(self.compression_mode in MODES, "compression_mode", self.compression_mode, f"one of {', '.join(MODES)}")
        require(self.block_size >= 1, "block_size", self.block_size, "an integer of at least 1")
        require(self.positions in ("absolute", "compact"), "positions", self.positions, "absolute or compact")
        require_backend(self.backend)
        require_tie(self.selector_mode)
        require_seed(self.seed)
        self.budget_for(self.budget)
        for name in ("lsh", "hybrid"):  # also where they are not chosen: a value that cannot be is a mistake
            self._strategy(name)
        if self.selector_type != "full":
            require_compatible(self.compression_mode, self.strategy())

    def budget_for(self, tokens: int) -> Budget:
        """The budget for a prompt of so many tokens."""
        if self.compression_ratio is None:
            return Budget(self.budget, self.protection_divisor)
        return Budget.of_ratio(self.compression_ratio, tokens, self.protection_divisor)

    def strategy(self) -> Strategy:
        """A strategy of these settings."""
        return self._strategy(self.selector_type)

    def _strategy(self, name: str) -> Strategy:
        if name != "hybrid":
            return self._single(name)
        parts = [self._single(name) for name in (self.hybrid_primary, self.hybrid_secondary)]
        return Hybrid(*parts, ratio=self.hybrid_ratio)

    def cache(self, model: PreTrainedModel, tokens: int) -> BoundedCache:
        """A cache for a prompt of so many tokens."""
        return BoundedCache(
            model,
            self.budget_for(tokens),
            strategy=self.strategy(),
            mode=self.compression_mode,  # type: ignore[arg-type], checked above
            positions=self.positions,  # type: ignore[arg-type]
            context_tokens=tokens,
        )

    @property
    def title(self) -> str:
        """Which method this is, in one word for tables."""
        if self.selector_type == "lsh":
            return self.lsh_mode
        if self.selector_type != "hybrid":
            return self.selector_type
        names = (self.lsh_mode if part == "lsh" else part for part in (self.hybrid_primary, self.hybrid_secondary))
        return f"{'+'.join(names)} {self.hybrid_ratio:g}"

    @property
    def label(self) -> str:
        """Method, mode and size, as names of files carry them."""
        if self.selector_type == "full":
            return "full"
        return f"{self.title.replace(' ', '_')}_{self.compression_mode}_{self.size}"

    @property
    def size(self) -> str:
        """How much is kept: budget or ratio, as names of files carry it."""
        share = self.compression_ratio
        return f"budget{self.budget}" if share is None else f"ratio{share:g}"

    def _single(self, name: str) -> Strategy:
        name = self.lsh_mode if name == "lsh" else name
        if name in LSH_MODES:
            return build_strategy(
                name, bits=self.num_bits, tables=self.num_tables, tie=self.selector_mode, seed=self.seed
            )
        if name == "random":
            return build_strategy(name, seed=self.seed)
        require(name in STRATEGIES, "strategy", name, f"lsh or one of {', '.join(STRATEGIES)}")
        return build_strategy(name, **({"backend": self.backend} if name in ("exact", "snapkv", "h2o") else {}))
