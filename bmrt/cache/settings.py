"""Compression settings as on the command line, and the strategies and caches they build."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from attentions.common.settings import require
from bmrt.cache.bounded_cache import BoundedCache, require_compatible
from bmrt.cache.budget import Budget
from bmrt.cache.plan import MODES
from bmrt.strategies import STRATEGIES, Hybrid, Strategy, build_strategy
from bmrt.strategies.base import require_seed
from bmrt.strategies.mass import require_backend
from bmrt.strategies.ties import require_tie

LSH_MODES = ("frequency_rank", "magicpig_baseline")
BASELINES = tuple(name for name in STRATEGIES if name not in ("exact", *LSH_MODES))
SELECTORS = ("exact", "lsh", "hybrid", *BASELINES, "full")


@dataclass(frozen=True)
class Settings:
    """All settings that determine what is kept.

    selector_type: "exact", "lsh" (see `lsh_mode`), "hybrid" (`hybrid_primary` takes hybrid_ratio of the global memory,
        `hybrid_secondary` the rest; each is exact, lsh, or a name in `STRATEGIES`), another name in
        `STRATEGIES` (`BASELINES`), or "full": nothing is dropped.
    selector_mode: breaks ties of equal collision counts in lsh (l2, max_sim, mahalanobis, partitioned_centroid, none).
    compression_mode: "recursive" or "accumulate" (see `bmrt.cache.plan`).
    backend: how attention mass is computed, eager or flash; the results are the same.
    budget: tokens per layer and head; compression_ratio, if given, overrides it with a fraction of each prompt's
    tokens. protection_divisor: n; anchors and local window have budget // n tokens each.
    block_size: context tokens per forward pass; during a pass, a layer holds at most budget, block, and question.
    num_bits, num_tables: size of the hash codes; a query matches a key in a table if all bits agree.
    positions: "absolute", or "compact" for lengths beyond the model's trained length.
    query_aware: append the question to every block, so that it selects; otherwise the latest tokens select.
    seed: seed of the hash functions and of random.

    Raises ValueError that names the setting, its value, and the allowed values.
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
        for name in ("lsh", "hybrid"):  # validate these even if they are not selected
            self._strategy(name)
        if self.selector_type != "full":
            require_compatible(self.compression_mode, self.strategy())

    def budget_for(self, tokens: int) -> Budget:
        """Return the budget for a prompt of `tokens` tokens."""
        if self.compression_ratio is None:
            return Budget(self.budget, self.protection_divisor)
        return Budget.of_ratio(self.compression_ratio, tokens, self.protection_divisor)

    def strategy(self) -> Strategy:
        """Build the strategy."""
        return self._strategy(self.selector_type)

    def _strategy(self, name: str) -> Strategy:
        if name != "hybrid":
            return self._single(name)
        parts = [self._single(name) for name in (self.hybrid_primary, self.hybrid_secondary)]
        return Hybrid(*parts, ratio=self.hybrid_ratio)

    def cache(self, model: PreTrainedModel, tokens: int) -> BoundedCache:
        """Build a cache for a prompt of `tokens` tokens."""
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
        """Short name of the method, for tables."""
        if self.selector_type == "lsh":
            return self.lsh_mode
        if self.selector_type != "hybrid":
            return self.selector_type
        names = (self.lsh_mode if part == "lsh" else part for part in (self.hybrid_primary, self.hybrid_secondary))
        return f"{'+'.join(names)} {self.hybrid_ratio:g}"

    @property
    def label(self) -> str:
        """Method, mode, and size, for file names."""
        if self.selector_type == "full":
            return "full"
        return f"{self.title.replace(' ', '_')}_{self.compression_mode}_{self.size}"

    @property
    def size(self) -> str:
        """Budget or ratio, for file names."""
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
