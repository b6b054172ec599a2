"""The engine: a question about a context, answered as the model would, in a fixed number of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bmrt import RecursiveCompressionEngine, Settings
from bmrt.cache.prompts import Prompts
from tasks.byte_tokenizer import ByteTokenizer
from tests.bmrt.models import tiny

CONTEXT = "In a hole in the ground there lived a wombat. " * 12
QUESTION = "Who lived there?"
TEMPLATE = (
    "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def model() -> Any:
    special: Any = {"vocab_size": 259, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
    return tiny(**special, max_position_embeddings=8192)


def engine(**settings: Any) -> RecursiveCompressionEngine:
    common = {"budget": 64, "block_size": 50, "max_new_tokens": 12, "tokenizer": "bytes"}
    return RecursiveCompressionEngine(model(), **(common | settings))


def byte_level(chat: str | None = None) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer of bytes, made here, whose beginning of sequence is "<s>"."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: i + 2 for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = chat  # type: ignore[assignment]
    return fast


@pytest.mark.parametrize(
    "settings",
    [
        {"selector_type": "full"},
        {"selector_type": "exact"},
        {"selector_type": "exact", "backend": "flash", "compression_mode": "accumulate"},
        {"selector_type": "lsh"},
        {"selector_type": "hybrid", "positions": "compact"},
        {"selector_type": "h2o"},
        {"selector_type": "exact", "query_aware": False},
    ],
)
def test_with_room_for_everything_the_answer_is_the_model_s_own(settings: dict[str, Any]) -> None:
    asked = engine(**{"budget": 700, **settings})
    ids = torch.tensor([[257, *CONTEXT.encode(), *QUESTION.encode()]])
    want = asked.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    answer = asked(CONTEXT, QUESTION)
    assert answer["text"] == [ByteTokenizer().decode(want)]
    assert answer["prompt_tokens"] == ids.shape[1]


@pytest.mark.parametrize("mode", ["recursive", "accumulate"])
@pytest.mark.parametrize(
    "settings",
    [
        {"selector_type": "exact"},
        {"selector_type": "lsh"},
        {"selector_type": "lsh", "lsh_mode": "magicpig_baseline"},
        {"selector_type": "hybrid", "hybrid_primary": "lsh", "hybrid_secondary": "magicpig_baseline"},
        {"selector_type": "snapkv"},
        {"selector_type": "random"},
    ],
)
def test_an_answer_keeps_to_its_budget(settings: dict[str, Any], mode: str) -> None:
    answer = engine(compression_mode=mode, **settings)(CONTEXT, QUESTION)
    assert answer["budget"] == 64
    assert 40 < answer["kept_tokens"] <= 64
    assert len(answer["text"]) == 1


def test_backends_give_the_same_answer() -> None:
    answers = {
        engine(selector_type="exact", backend=backend)(CONTEXT, QUESTION)["text"][0] for backend in ("eager", "flash")
    }
    assert len(answers) == 1


def test_samples_do_not_leave_anything_behind() -> None:
    asked = engine()
    first = asked(CONTEXT, QUESTION)
    asked(CONTEXT[::-1], QUESTION, selector_type="h2o", budget=32)
    assert asked(CONTEXT, QUESTION) == first


def test_a_ratio_is_a_budget_by_each_prompt_s_length() -> None:
    asked = engine(compression_ratio=0.25)
    for context in (CONTEXT, CONTEXT * 2):
        answer = asked(context, QUESTION)
        assert answer["budget"] == answer["prompt_tokens"] // 4


def test_an_empty_context_is_an_ordinary_question() -> None:
    asked = engine(budget=700)
    ids = torch.tensor([[257, *QUESTION.encode()]])
    want = asked.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    assert asked("", QUESTION)["text"] == [ByteTokenizer().decode(want)]


def test_stop_words_end_an_answer_and_are_not_part_of_it() -> None:
    whole = engine()(CONTEXT, QUESTION)["text"][0]
    stop = whole[4:6]
    assert engine(stop_words=[stop])(CONTEXT, QUESTION)["text"][0] == whole.partition(stop)[0]


def test_the_question_decides_what_is_kept() -> None:
    """Shown along with each block; without that, other tokens stay."""
    kept: dict[bool, Any] = {}
    for aware in (True, False):
        asked = engine(query_aware=aware, max_new_tokens=1)
        settings = asked.settings
        cache = settings.cache(asked.model, 600)
        context, question = (torch.tensor([ids]) for ids in asked.prompts.split(CONTEXT, QUESTION))
        asked._read(cache, context, question, settings)
        assert cache.get_seq_length() == context.shape[1]
        kept[aware] = cache.layers[1].positions.tolist()
    assert kept[True] != kept[False]


def test_one_beginning_of_sequence_and_a_template_around_both() -> None:
    plain, chat = Prompts(byte_level()), Prompts(byte_level(TEMPLATE))
    for prompts, text in ((plain, f"<s>{CONTEXT}{QUESTION}"), (chat, f"<s>[user]{CONTEXT}{QUESTION}[end][assistant]")):
        context, question = prompts.split(CONTEXT, QUESTION)
        assert context.count(0) == 1
        assert context[0] == 0
        assert 0 not in question
        assert prompts.decode(context + question) == text.removeprefix("<s>")


def test_the_middle_is_cut_out() -> None:
    prompts = Prompts(ByteTokenizer())
    assert prompts.middle_cut("abcdefghij", 4) == "abij"
    assert prompts.middle_cut("abcd", 4) == "abcd"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selector_type": "exakt"}, "selector_type='exakt'"),
        ({"lsh_mode": "rank"}, "lsh_mode='rank'"),
        ({"selector_mode": "l3"}, "selector_mode='l3'"),
        ({"compression_mode": "none"}, "compression_mode='none'"),
        ({"backend": "triton"}, "backend='triton'"),
        ({"budget": 2}, "budget=2"),
        ({"protection_divisor": 2}, "protection_divisor=2"),
        ({"compression_ratio": 1.5}, "compression_ratio=1.5"),
        ({"block_size": 0}, "block_size=0"),
        ({"num_bits": 40, "selector_type": "lsh"}, "bits=40"),
        ({"selector_type": "hybrid", "hybrid_ratio": 2}, "hybrid_ratio=2"),
        ({"selector_type": "hybrid", "hybrid_primary": "best"}, "strategy='best'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"budgets": 5}, "setting='budgets'"),
        ({"tokenizer": "no/such/folder"}, "tokenizer='bytes'|Give 'bytes'"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(**settings)


def test_a_model_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        RecursiveCompressionEngine(str(tmp_path))


def test_a_question_is_needed() -> None:
    with pytest.raises(ValueError, match="prompt_query"):
        engine()(CONTEXT, "")


def test_every_selector_is_a_strategy_with_a_title() -> None:
    titles = [Settings(selector_type=name).title for name in ("exact", "lsh", "hybrid", "recent", "full")]
    assert titles == ["exact", "frequency_rank", "exact+frequency_rank 0.5", "recent", "full"]


@pytest.mark.parametrize(
    "context", ["A text.", "user", "[", "]", "", " ", "  a\n", "[user]", "assistant", "\n[assistant]"]
)
@pytest.mark.parametrize("question", ["What?", " What? ", "[user]", "user"])
@pytest.mark.parametrize("content", ["m['content']", "m['content'] | trim", "m['content'].lstrip()"])
def test_a_message_is_found_where_it_is_in_a_template(context: str, question: str, content: str) -> None:
    """Also where its words occur in the template, and where the template strips it."""
    prompts = Prompts(byte_level(TEMPLATE.replace("m['content']", content)))
    before, after = (prompts.decode(ids) for ids in prompts.split(context, question))
    asked, plain = question, content == "m['content']"
    if "trim" in content:
        asked = asked.rstrip()
    if not plain and not context.strip():
        asked = asked.lstrip()
    assert after == f"{asked}[end][assistant]"
    assert before == f"[user]{context if plain else context.lstrip()}"


@pytest.mark.parametrize(
    ("content", "message"),
    [("m['content'] | upper", "changes messages"), ("m['content'] + m['content']", "2 times"), ("''", "0 times")],
)
def test_templates_that_change_a_message_are_refused(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompts(byte_level(TEMPLATE.replace("m['content']", content))).split("A text.", "What?")


@pytest.mark.parametrize("text", ["é" * 50, "日本語" * 20, "aé日" * 20, "🙂" * 12])
@pytest.mark.parametrize("tokens", range(0, 40, 3))
def test_a_text_cut_in_the_middle_is_no_longer_than_asked(text: str, tokens: int) -> None:
    """Bytes of a character that is cut through would be encoded as three of U+FFFD each."""
    for tokenizer in (ByteTokenizer(), byte_level()):
        prompts = Prompts(tokenizer)
        cut = prompts.middle_cut(text, tokens)
        assert prompts.count(cut) <= tokens
        assert "\ufffd" not in cut
        assert set(cut) <= set(text)
        assert prompts.count(cut) >= tokens - 10


def test_halves_of_characters_are_refused() -> None:
    for tokenizer in (ByteTokenizer(), byte_level()):
        with pytest.raises(ValueError, match="a lone surrogate"):
            Prompts(tokenizer).split("left\ud800right", "What?")


def test_a_cut_text_that_is_encoded_longer_again_is_cut_further() -> None:
    class Unsure:
        """Letters, and for all else one token whose text is five letters."""

        bos_token_id = eos_token_id = chat_template = None

        def encode(self, text: str, **options: bool) -> list[int]:
            return [ord(letter) if letter.isascii() else 0 for letter in text]

        def decode(self, tokens: list[int], **options: bool) -> str:
            return "".join(chr(token) if token else "<unk>" for token in tokens)

    prompts = Prompts(Unsure())
    for tokens in range(30):
        cut = prompts.middle_cut("aé" * 40, tokens)
        assert tokens - 12 <= prompts.count(cut) <= tokens
