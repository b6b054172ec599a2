"""Accuracy is what greedy decoding gets right, whatever the batch; on a model that can be known to answer."""

from __future__ import annotations

import pytest
from scipy.stats import beta

from lsh_bitnet import Loaded, attend_with, load_model
from lsh_bitnet.answers import Accuracy, measure_accuracy, measure_forced
from tasks.example import Example, Task
from tests.lsh_bitnet.models import loaded, shared


class Echo(Task):
    """What followed the last 8 bytes the first time; every third example has no such place."""

    def example(self, index: int) -> Example:
        key = f"the code of door {index:03d} is "
        value = f"{index * index % 997:03d};"
        told = key + value if index % 3 else "nothing."
        return Example(f"{'.' * index} {told}\n{key}", value)


@pytest.fixture(scope="module")
def finder() -> Loaded:
    return load_model("written-induction")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_model_that_copies_is_right_where_there_is_something_to_copy(finder: Loaded, batch_size: int) -> None:
    found = measure_accuracy(finder, Echo(), samples=9, batch_size=batch_size)
    task = Echo()
    scored = [task.score(task.example(i), answer) for i, answer in enumerate(found.answers)]
    assert scored == [0, 1, 1] * 3
    assert (found.right, found.samples) == (6, 9)
    assert found.scores == tuple(scored)
    assert found.targets == tuple(task.example(i).answer for i in range(9))


def test_the_first_answer_does_not_wait_for_later_examples(finder: Loaded) -> None:
    class Ending(Echo):
        def example(self, index: int) -> Example:
            if index >= 4:
                assert answered, "made before the first answer"
                raise ValueError("no more")
            return super().example(index)

        def score(self, example: Example, output: str) -> float:
            answered.append(output)
            return super().score(example, output)

    answered: list[str] = []
    with pytest.raises(ValueError, match="no more"):
        measure_accuracy(finder, Ending(), samples=2**31 - 1, batch_size=2)
    assert len(answered) == 4


def test_a_forced_answer_is_right_where_the_decoded_one_is_whether_or_not_it_would_end(finder: Loaded) -> None:
    assert measure_forced(finder, Echo(), samples=9) == Accuracy(6, 9)


class Unended(Echo):
    """Answers behind which more stands in the text, so that a model that copies does not end there."""

    def example(self, index: int) -> Example:
        found = super().example(index)
        return Example(found.prompt, found.answer[:-1])


def test_a_forced_answer_need_not_end(finder: Loaded) -> None:
    assert measure_forced(finder, Unended(), samples=9) == Accuracy(6, 9)


def test_padding_of_a_batch_changes_no_answer() -> None:
    model = loaded(shared("llama"))  # random weights: whatever a prompt attends to shows in what is said
    assert measure_accuracy(model, Echo(), samples=6, batch_size=6) == measure_accuracy(model, Echo(), samples=6)


def test_decoding_without_a_cache_gives_the_same_answers(finder: Loaded) -> None:
    assert measure_accuracy(finder, Echo(), samples=3, use_cache=False) == measure_accuracy(finder, Echo(), samples=3)


def test_an_attention_that_sees_too_little_answers_wrong(finder: Loaded) -> None:
    with attend_with(finder.model, "bit_sampling", bits=0, window=12, local=12):
        assert measure_accuracy(finder, Echo(), samples=6).right == 0


def test_the_interval_covers_the_accuracy_and_narrows_with_samples() -> None:
    few, many = Accuracy(8, 10), Accuracy(800, 1000)
    assert few.interval == pytest.approx((0.490, 0.943), abs=1e-3)  # Wilson 1927, as tabulated
    assert many.interval[1] - many.interval[0] < 0.06
    exact = beta.ppf(0.025, 800, 201)
    assert many.interval[0] == pytest.approx(exact, abs=3e-3)


def test_prompts_past_the_models_length_are_refused() -> None:
    class Long(Echo):
        def example(self, index: int) -> Example:
            return Example("x" * 5000, "y")

    with pytest.raises(ValueError, match="5003 tokens are not allowed"):
        measure_accuracy(loaded(shared("llama")), Long(), samples=1)


@pytest.mark.parametrize(("samples", "batch_size"), [(0, 1), (1, 0)])
def test_sizes_below_one_are_refused(samples: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"samples={samples}, batch_size={batch_size} are not allowed"):
        measure_accuracy(loaded(shared("llama")), Echo(), samples=samples, batch_size=batch_size)


def test_no_samples_cannot_be_forced() -> None:
    with pytest.raises(ValueError, match="samples=0 is not allowed"):
        measure_forced(loaded(shared("llama")), Echo(), samples=0)
