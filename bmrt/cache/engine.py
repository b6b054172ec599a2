"""Answers long prompts in bounded memory: the context is read block by block, then the question, then the answer.

The state after block N is selected from the state after block N - 1 and block N. The question is appended to each
block, so that it decides what is kept; it enters the cache only at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, StoppingCriteria

from attentions.common.settings import require
from bmrt.cache.bounded_cache import BoundedCache
from bmrt.cache.identity import code_digest, model_digest, tokenizer_digest
from bmrt.cache.prompts import Prompts
from bmrt.cache.settings import Settings
from harness.common.packaged import packaged_models
from tasks.byte_tokenizer import ByteTokenizer

# What transformers raises for a folder without a model, a damaged one, or one that needs another package.
LOADING = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError)
LOADING += (AssertionError, SafetensorError, StrictDataclassError)


class RecursiveCompressionEngine:
    """Answers questions about contexts of any length with a fixed number of cached tokens.

    model_path: the name of a model in `models/`, a folder, a hub id, or a model. tokenizer: a folder or hub id,
    "bytes", or a tokenizer; defaults to the model's own, which is "bytes" for a byte-level model without tokenizer
    files. Further arguments are those of `Settings`. The model is loaded once, moved to `device` (default: CUDA if
    available), and not changed.

        engine = RecursiveCompressionEngine(model_path="...", selector_type="exact", budget=4096)
        engine(prompt_context="...", prompt_query="What is the main topic?")["text"][0]

    Raises ValueError for invalid settings and for a model that cannot be loaded.
    """

    def __init__(
        self,
        model_path: str | PreTrainedModel,
        *,
        tokenizer: Any = None,
        max_new_tokens: int = 100,
        stop_words: Sequence[str] | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        require(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "an integer of at least 1")
        require(all(stop_words or ()), "stop_words", stop_words, "non-empty texts")
        self.settings = settings_of(settings)
        self.model: Any = load_model(model_path, device)
        self.prompts = Prompts(load_tokenizer(tokenizer, self.model))
        self.max_new_tokens, self.stop_words = max_new_tokens, list(stop_words or [])
        self._digest: tuple[Any, str] = None, ""

    def __call__(self, prompt_context: str, prompt_query: str, **changes: Any) -> dict[str, Any]:
        """Return the answer as {"text": [str]}, with "prompt_tokens", "budget" (None if full), "kept_tokens", and
        "cache_bytes".

        The last two are the tokens in a layer and the bytes in the whole cache after the answer. `changes` override
        settings for this prompt only. Raises ValueError for an empty question.
        """
        settings = settings_of(vars(self.settings) | changes) if changes else self.settings
        context, question = self.prompts.split(prompt_context, prompt_query)
        require(bool(question), "prompt_query", prompt_query, "a non-empty text")
        known = self.model.get_input_embeddings().num_embeddings
        highest = max(context + question)
        require(
            highest < known, "tokenizer's token", highest, f"one of the model's {known}; use the tokenizer of the model"
        )
        ids = torch.tensor([context + question], device=self.model.device)
        with torch.inference_mode():
            cache = self._cache(settings, len(context) + len(question))
            self._read(cache, ids[:, : len(context)], ids[:, len(context) :], settings)
            found = self._answer(cache, ids, settings)
        text = self.prompts.decode(found)
        for word in self.stop_words:
            text = text.partition(word)[0]
        return {"text": [text], "prompt_tokens": ids.shape[1], **_held(cache)}

    def identity(self) -> dict[str, Any]:
        """Return all that an answer depends on except the question: settings and digests of model, tokenizer, code."""
        tensors = self.model.state_dict().values()
        version = [] if any(x.is_inference() for x in tensors) else [(x.data_ptr(), x._version) for x in tensors]
        if not version or self._digest[0] != version:  # rehash only if a weight may have changed
            self._digest = version, model_digest(self.model)
        own = {"max_new_tokens": self.max_new_tokens, "stop_words": self.stop_words}
        digests = {"model": self._digest[1], "tokenizer": tokenizer_digest(self.prompts.tokenizer)}
        return asdict(self.settings) | own | digests | code_digest()

    def cleanup(self) -> None:
        """Release the model and its device memory."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _cache(self, settings: Settings, tokens: int) -> BoundedCache | DynamicCache:
        if settings.selector_type == "full":
            return DynamicCache(config=self.model.config)
        return settings.cache(self.model, tokens)

    def _read(self, cache: BoundedCache | DynamicCache, context: Tensor, question: Tensor, settings: Settings) -> None:
        """Read the context block by block; logits are not needed, so the decoder runs without its head."""
        decoder = self.model.base_model
        for block in context.split(settings.block_size, dim=1) if context.shape[1] else ():
            if isinstance(cache, BoundedCache) and settings.query_aware and cache.strategy.observes:
                with cache.probing(question.shape[1]):
                    decoder(torch.cat((block, question), 1), past_key_values=cache, use_cache=True)
            else:
                decoder(block, past_key_values=cache, use_cache=True)

    def _answer(self, cache: BoundedCache | DynamicCache, ids: Tensor, settings: Settings) -> list[int]:
        """Generate greedily from the whole prompt; the cache has already read the context."""
        stop = [StopWords(self.stop_words, self.prompts.decode, ids.shape[1])] if self.stop_words else None
        found: Tensor = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            prefill_chunk_size=settings.block_size,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.prompts.eos,
            stopping_criteria=stop,
        )
        return found[0, ids.shape[1] :].tolist()


class StopWords(StoppingCriteria):
    """Stops when the generated text contains one of the words."""

    def __init__(self, words: Sequence[str], decode: Callable[[Sequence[int]], str], prompt_tokens: int) -> None:
        self.words, self.decode, self.prompt_tokens = words, decode, prompt_tokens

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        texts = [self.decode(row[self.prompt_tokens :].tolist()) for row in input_ids]
        ended = [any(word in text for word in self.words) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def _held(cache: BoundedCache | DynamicCache) -> dict[str, Any]:
    """Return the size of a cache."""
    if isinstance(cache, BoundedCache):
        held = max(layer.held for layer in cache.bounded)
        return {"budget": cache.plan.budget.total, "kept_tokens": held, "cache_bytes": cache.state_bytes}
    layers: list[Any] = cache.layers
    tensors: list[Tensor] = [x for layer in layers for x in (layer.keys, layer.values) if x is not None]
    size = sum(x.numel() * x.itemsize for x in tensors)
    return {"budget": None, "kept_tokens": cache.get_seq_length(), "cache_bytes": size}


def settings_of(values: dict[str, Any]) -> Settings:
    """Build `Settings`. Raises ValueError for unknown names and for whatever `Settings` rejects."""
    known = Settings.__dataclass_fields__
    for name in values:
        require(name in known, "setting", name, f"one of {', '.join(known)}")
    return Settings(**values)


def require_device(device: str) -> None:
    """Raise ValueError for a device that torch cannot use here."""
    try:
        there = torch.empty(0, device=device).device.type != "meta"
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"device={device!r} is not allowed: it must be one that torch supports here: {reason}"
        ) from error
    require(there, "device", device, "one that supports computation")


def load_model(model: str | PreTrainedModel, device: str | None = None) -> PreTrainedModel:
    """Load a model for inference. Raises ValueError, with a remedy, if there is none."""
    if not isinstance(model, str):
        return model
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    require_device(device)
    known = packaged_models()
    try:
        place = str(known.get(model, model))
        found: Any = AutoModelForCausalLM.from_pretrained(place, dtype="auto", output_loading_info=True)
    except LOADING as error:
        raise ValueError(
            f"model_path={model!r} cannot be loaded: {error}. Give one of {', '.join(known)}, a folder with a causal "
            "language model, or a hub id that is cached or can be downloaded"
        ) from error
    loaded, info = found
    if lacking := sorted(str(name) for name in {*info["missing_keys"], *info["mismatched_keys"]}):
        raise ValueError(f"model_path={model!r} has no weights for {', '.join(lacking[:3])}; they would be random")
    return loaded.to(device).eval()


def load_tokenizer(tokenizer: Any, model: PreTrainedModel) -> Any:
    """Load a tokenizer, by default the model's own. Raises ValueError, with a remedy, if there is none."""
    if tokenizer is not None and not isinstance(tokenizer, str):
        return tokenizer
    path = tokenizer or model.config.name_or_path
    if path == "bytes" or (tokenizer is None and _is_byte_level(model)):
        return ByteTokenizer()
    try:
        return AutoTokenizer.from_pretrained(path)
    except LOADING as error:
        raise ValueError(
            f"no tokenizer can be loaded from {path!r}: {error}. Give 'bytes' for a byte-level model, or a folder"
        ) from error


def _is_byte_level(model: PreTrainedModel) -> bool:
    """Whether the vocabulary is bytes and three special tokens, and the model's folder has no tokenizer files."""
    if model.config.get_text_config().vocab_size != ByteTokenizer.vocab_size:
        return False
    folder = model.config.name_or_path  # empty for a model that was not loaded
    return not (folder and any(Path(folder).glob("tokenizer*")))
