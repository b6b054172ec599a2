"""The commands of the README run offline with their options, write one JSON file each, and say what is missing."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lsh_bitnet import evaluate, new_york, wikitext103
from lsh_bitnet.commands import baseline_parser, what_ran
from lsh_bitnet.models import random_model
from lsh_bitnet.results import LONGEST_WHAT
from lsh_bitnet.settings import read_experiment
from tests.lsh_bitnet.models import loaded, shared

CONFIGS = Path(evaluate.__file__).parent / "configs"
HERE = ["model=random-bitnet", "text={corpus: stdlib}"]
OFFLINE = ["--set", "model=random-bitnet", "--set", "text={corpus: stdlib}", "--set", "seq_len=64"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("lsh_bitnet.evaluate.load_corpus", _few)


def _few(name: str, split: str, *, path: str | None = None) -> str:
    from tasks.corpora import load_corpus

    return load_corpus(name, split, path=path)[:100_000]  # encoding all of a split takes seconds


def written(folder: Path) -> tuple[str, dict[str, Any]]:
    (path,) = folder.iterdir()
    return path.name, json.loads(path.read_text())


def test_the_wikitext103_command_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--max-batches 3 --batch-size 2 --seq-len 128 --split validation --device cpu --model random-bitnet"
    assert wikitext103.main([*options.split(), "--out", str(tmp_path)]) == 0
    name, values = written(tmp_path)
    assert re.fullmatch(
        r"baseline_stdlib_validation_all_3batches_2\w+Z_random-bitnet_stdlib-validation_full\.json", name
    )
    assert (values["tokens"], values["predicted_tokens"]) == (3 * 2 * 128, 3 * 2 * 127)
    assert f"Perplexity = {values['perplexity']:.2f}" in capsys.readouterr().out


def test_its_defaults_are_987_batches_of_two_windows_of_128(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def stop(experiment: Any) -> None:
        seen.update(experiment.model_dump())
        raise ValueError("enough")

    monkeypatch.setattr(wikitext103, "evaluate", stop)
    with pytest.raises(SystemExit):
        wikitext103.main(["--model", "bitnet-2b"])
    assert [seen[name] for name in ("max_batches", "batch_size", "seq_len")] == [987, 2, 128]
    assert seen["text"]["corpus"] == "wikitext103"
    assert seen["name"] == "baseline_wikitext103_validation_all_all"


def test_the_new_york_command_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--n-samples 3 --batch-size 2 --device cpu --model random-bitnet --length 400"
    assert new_york.main([*options.split(), "--out", str(tmp_path)]) == 0
    name, values = written(tmp_path)
    assert re.fullmatch(r"baseline_synthetic_ny_adj_3samples_2\w+Z_random-bitnet_full\.json", name)
    assert len(values["targets"]) == len(values["scores"]) == 3
    assert values["right"] == sum(score == 1 for score in values["scores"])
    assert "comparisons" not in values
    assert values["samples"] == 3
    assert len(values["answers"]) == 3
    low, high = values["interval"]
    assert low <= values["accuracy"] <= high
    assert "Accuracy = " in capsys.readouterr().out


def test_both_baselines_take_an_attention(tmp_path: Path) -> None:
    attention = ["--attention", "simhash", "--settings", '{"bits": 2, "window": 4}', "--dense-layers", "0"]
    model = ["--model", "random-llama", "--out", str(tmp_path)]
    wikitext103.main([*model, *attention, "--max-batches", "1"])
    _, values = written(tmp_path)
    assert values["by_layer"]["0"] == 1 > values["by_layer"]["1"]
    assert values["comparison_ratio"] == pytest.approx(values["comparisons"] / values["full_comparisons"])
    new_york.main([*model, *attention, "--n-samples", "1", "--length", "300"])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0].endswith("_random-llama_stdlib-validation_simhash.json")
    assert names[1].endswith("_random-llama_simhash.json")
    found = json.loads((tmp_path / names[1]).read_text())
    assert found["attention"] == {"backend": "simhash", "settings": {"bits": 2, "window": 4}, "dense_layers": [0]}
    assert found["comparison_ratio"] == found["comparisons"] / found["full_comparisons"] < 1
    assert found["by_layer"]["0"] == 1 > found["by_layer"]["1"]


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_configuration_runs_on_a_small_model(config: str, tmp_path: Path) -> None:
    arguments = [str(CONFIGS / config), *OFFLINE, "--set", "max_batches=2", "--out", str(tmp_path)]
    assert evaluate.main(arguments) == 0
    name, values = written(tmp_path)
    kind = config.removesuffix(".yaml")
    backend = "bit_sampling" if "lsh" in config else "full"
    assert re.fullmatch(rf"{kind}_2\w+Z_random-bitnet_stdlib-validation_{backend}\.json", name)
    assert values["model_content"] == "random-bitnet"
    assert len(values["text_sha256"]) == 64
    assert values["tokens"] == 2 * 64
    assert values["perplexity"] > 1
    assert ("comparison_ratio" in values) == ("lsh" in config)


def test_two_results_never_share_a_file(tmp_path: Path) -> None:
    from lsh_bitnet.results import save

    assert save("same", {}, tmp_path) != save("same", {}, tmp_path)


def test_configurations_differ_in_what_they_say(tmp_path: Path) -> None:
    full, hashed = (read_experiment(CONFIGS / f"wt2_bitnet_{kind}.yaml") for kind in ("full", "lsh_bitsampling"))
    assert full.attention is None
    assert hashed.attention is not None
    assert (full.text, full.seq_len) == (hashed.text, hashed.seq_len)


def refusal(main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says before it ends with 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["seq_length=5"], "seq_length: this key is unknown"),
        (["device.x=5"], "device is 'cpu', which has no keys"),
        (["nonsense"], "must have the form key=value"),
        (["a=[1"], "not valid YAML"),
        (["seq_len=1"], "seq_len: 1 is not allowed; it must be an integer of at least 2"),
        (["seq_len=many"], "seq_len: 'many' is not allowed"),
        (["seq_len=1.5"], "seq_len: 1.5 is not allowed"),
        (["batch_size=0"], "batch_size: 0 is not allowed"),
        (["batch_size=100000000000000000000"], "batch_size: 100000000000000000000 is not allowed"),
        (["max_batches=-1"], "max_batches: -1 is not allowed"),
        (["dtype=int8"], "dtype: 'int8' is not allowed; it must be auto, float32"),
        (["device=gpu"], "device='gpu' is not allowed: it must be cpu, cuda"),
        (["device=cuda:99"], "finds no such device"),
        (["text.split=all"], "text.split: 'all' is not allowed"),
        (["text.corpus=wiki"], "text.corpus: 'wiki' is not allowed; it must be one of stdlib"),
        (["text.path=/nowhere/at/all"], "there is no such file or folder"),
        (["text=5"], "text: 5 is not allowed"),
        (["name=a/b"], "name: 'a/b' is not allowed"),
        (["name=" + "日" * 34], "it must have at most 100 bytes, not 102"),
        (["name=" + "x" * 101], "it must have at most 100 bytes, not 101"),
        (["name=''"], "name: '' is not allowed"),
        (["model=nobody/nothing"], "model 'nobody/nothing' cannot be loaded"),
        (["model="], "model"),
        (["model=/nowhere"], "model '/nowhere' is not allowed: there is no such folder"),
        (["model=random-rnn"], "architecture 'rnn' is not allowed"),
        (["model=random-bitnet"], "corpus 'wikitext2' cannot be read from the hub"),
        (["attention={backend: lhs}"], "unknown backend 'lhs'"),
        (["attention={backend: 'no.such:Class'}"], "cannot be imported"),
        *(
            ([*HERE, f"attention={{backend: simhash, settings: {{bits: {bits}}}}}"], f"bits={shown} is not allowed")
            for bits, shown in (("two", "'two'"), ("010", "'010'"), ("[8]", "[8]"), ("{a: 1}", "{'a': 1}"))
        ),
        ([*HERE, "attention={backend: simhash, settings: {bits: 99}}"], "bits=99 is not allowed"),
        ([*HERE, "attention={backend: simhash, settings: {seed: -1}}"], "seed=-1 is not allowed"),
        ([*HERE, "attention={backend: simhash, settings: {seed: x}}"], "seed='x' is not allowed"),
        ([*HERE, "attention={backend: simhash, settings: {nothing: 1}}"], "has no setting 'nothing'"),
        ([*HERE, "attention={backend: simhash, dense_layers: [7]}"], "dense_layers=[7] is not allowed"),
        ([*HERE, "attention={backend: simhash, dense_layers: 7}"], "attention.dense_layers: 7 is not allowed"),
        ([*HERE, "seq_len=9999"], "9999 tokens are not allowed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_missing_or_wrong_is_said(
    changes: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = [part for change in changes for part in ("--set", change)]
    arguments = [str(CONFIGS / "wt2_bitnet_full.yaml"), *options, "--out", str(tmp_path)]
    assert message in refusal(evaluate.main, arguments, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a mapping"),
        (b"[1]", "must be a mapping"),
        (b"a: [", "not valid YAML"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_a_configuration_that_is_none_is_said(
    content: bytes, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "conf.yaml").write_bytes(content)
    assert message in refusal(evaluate.main, [str(tmp_path / "conf.yaml")], capsys)
    assert "cannot be read" in refusal(evaluate.main, [str(tmp_path / "nowhere.yaml")], capsys)
    assert "cannot be read" in refusal(evaluate.main, [str(tmp_path)], capsys)


SHARED: list[tuple[list[str], str]] = [
    (["--model", "nobody/nothing"], "model 'nobody/nothing' cannot be loaded"),
    (["--model", ""], "model"),
    (["--device", "gpu"], "device='gpu' is not allowed"),
    (["--device", "cuda:99"], "finds no such device"),
    (["--dtype", "int8"], "invalid choice: 'int8'"),
    (["--attention", "lhs"], "unknown backend 'lhs'"),
    (["--attention", "simhash", "--settings", "{"], "--settings { is not allowed"),
    (["--attention", "simhash", "--settings", "[1]"], "it must be a JSON object"),
    (["--attention", "simhash", "--settings", '{"bits": "010"}'], "bits='010' is not allowed"),
    (["--attention", "simhash", "--settings", '{"bits": [8]}'], "bits=[8] is not allowed"),
    (
        ["--attention", "bmrt.cache.attention:BoundedAttention", "--settings", '{"budget": "9"}'],
        "budget='9' is not allowed",
    ),
    (["--settings", '{"bits": 2}'], "--settings is not allowed without --attention"),
    (["--dense-layers", "0"], "--dense-layers is not allowed without --attention"),
    (["--attention", "simhash", "--dense-layers", "9"], "dense_layers=[9] is not allowed"),
    (["--attention", "simhash", "--dense-layers", "x"], "invalid int value: 'x'"),
    (["--out", ""], "--out: '' is not allowed"),
    (["--out", "/dev/null/x"], "--out: /dev/null/x cannot be created"),
    (["--nothing"], "unrecognized arguments: --nothing"),
]
OWN: dict[Callable[[list[str]], int], list[tuple[list[str], str]]] = {
    wikitext103.main: [
        (["--max-batches", "0"], "--max-batches: '0' is not an integer from 1"),
        (["--max-batches", "x"], "--max-batches: 'x' is not an integer"),
        (["--max-batches", "99999999999"], "--max-batches: '99999999999' is not an integer from 1 to 2147483647"),
        (["--batch-size", "0"], "--batch-size: '0' is not an integer from 1"),
        (["--batch-size", "-1"], "--batch-size: '-1' is not an integer from 1"),
        (["--seq-len", "1"], "--seq-len: '1' is not an integer from 2"),
        (["--seq-len", "100000"], "100000 tokens are not allowed"),
        (["--split", "all"], "invalid choice: 'all'"),
        (["--corpus", "wiki"], "invalid choice: 'wiki'"),
        (["--path", "/nowhere"], "there is no such file or folder"),
        (["--corpus", "stdlib", "--path", "/dev"], "is not allowed for stdlib"),
        (["--path", str(CONFIGS)], "cannot be read"),
    ],
    new_york.main: [
        (["--n-samples", "0"], "--n-samples: '0' is not an integer from 1"),
        (["--n-samples", "x"], "--n-samples: 'x' is not an integer"),
        (["--n-samples", "99999999999"], "--n-samples: '99999999999' is not an integer from 1 to 2147483647"),
        (["--n-samples", "2147483647"], "--n-samples 2147483647 of --length 1024 are not allowed"),
        (["--batch-size", "0"], "--batch-size: '0' is not an integer from 1"),
        (["--batch-size", "99999999999"], "--batch-size: '99999999999' is not an integer from 1 to 2147483647"),
        (["--length", "0"], "--length: '0' is not an integer from 1"),
        (["--length", "-5"], "--length: '-5' is not an integer from 1"),
        (["--length", "40"], "40"),
        (["--length", "5000"], "5000 tokens are not allowed"),
        (["--length", "1" + "0" * 30], "is not an integer from 1"),
        (["--nth", "0"], "--nth: '0' is not an integer from 1"),
        (["--nth", "100000"], "nth=100000"),
        (["--decoys", "-1"], "--decoys: '-1' is not an integer from 0"),
        (["--decoys", "100000"], "decoys=100000"),
        (["--distance", "-1"], "--distance: '-1' is not an integer from 0"),
        (["--distance", "5000"], "distance=5000"),
        (["--wording", "long"], "invalid choice: 'long'"),
        (["--seed", "x"], "invalid int value"),
    ],
}


@pytest.mark.parametrize(
    ("main", "options", "message"),
    [(main, *case) for main, cases in OWN.items() for case in (*SHARED, *cases)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_of_any_option_is_one_line(
    main: Callable[[list[str]], int],
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refusal(main, ["--model", "random-llama", *options], capsys)
    assert not list(tmp_path.iterdir())


def test_every_option_of_the_baselines_is_among_them() -> None:
    for main, cases in OWN.items():
        tried = {option for options, _ in (*SHARED, *cases) for option in options if option.startswith("--")}
        parser = baseline_parser("x", "x")
        known = {option for action in parser._actions for option in action.option_strings}
        source = inspect.getsource(main)
        known |= set(re.findall(r'add_argument\("(--[\w-]+)"', source))
        assert known - {"-h", "--help"} <= tried, main.__module__


def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lsh_bitnet.evaluate.load_model", lambda *_, **__: pytest.fail("the work has begun"))
    monkeypatch.setattr("lsh_bitnet.new_york.load_model", lambda *_, **__: pytest.fail("the work has begun"))
    (tmp_path / "a file").touch()
    for main, given in (
        (evaluate.main, [str(CONFIGS / "wt2_bitnet_full.yaml")]),
        (wikitext103.main, []),
        (new_york.main, []),
    ):
        too_long = tmp_path / "/".join(["x" * 200] * 19)  # a folder can have such a path, and no file in it
        below = (tmp_path / "a file" / "below", Path("/proc/x"), Path("/proc"), tmp_path / ("x" * 5000), too_long)
        for out in (tmp_path / "a file", *below):
            assert refusal(main, [*given, "--out", str(out)], capsys).startswith(
                f"python -m {main.__module__}: --out: "
            )


def test_what_ran_is_a_name_that_a_file_can_have() -> None:
    assert what_ran("microsoft/bitnet-b1.58-2B-4T", "stdlib-test", None, "full") == (
        "microsoft-bitnet-b1.58-2B-4T_stdlib-test_full"
    )
    assert what_ran("/data/models/mine", "my.attentions:Mine") == "mine_my.attentions-Mine"
    assert what_ran("..", "x" * 500) == "unnamed_" + "x" * 61
    assert len(what_ran("日" * 60, "é" * 60, "é" * 200).encode()) <= LONGEST_WHAT


@pytest.mark.parametrize("letter", ["x", "é", "日"])
def test_the_longest_names_that_are_allowed_are_names_of_a_file(letter: str, tmp_path: Path) -> None:
    """Of the experiment and of the model's folder."""
    name, model = letter * (100 // len(letter.encode())), tmp_path / (letter * (250 // len(letter.encode())))
    random_model("llama").save_pretrained(model)
    changes = [f"name={name}", f"model={model}", "text={corpus: stdlib}", "seq_len=64", "max_batches=1"]
    options = [part for change in changes for part in ("--set", change)]
    evaluate.main([str(CONFIGS / "wt2_bitnet_lsh_bitsampling.yaml"), *options, "--out", str(tmp_path / "out")])
    found, values = written(tmp_path / "out")
    assert found.startswith(f"{name}_2")
    assert values["model"] == str(model)


def test_a_result_is_saved_before_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may be listening."""

    def nobody(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    for main, options in (
        (wikitext103.main, "--max-batches 1"),
        (new_york.main, "--n-samples 1 --length 300"),
        (evaluate.main, f"{CONFIGS / 'wt2_bitnet_full.yaml'} {' '.join(OFFLINE[:2])} --set max_batches=1"),
    ):
        folder = tmp_path / main.__module__
        given = [*options.split(), *(["--model", "random-llama"] if main is not evaluate.main else OFFLINE[2:])]
        monkeypatch.setattr(f"{main.__module__}.print", nobody, raising=False)
        with pytest.raises(SystemExit):
            main([*given, "--out", str(folder)])
        written(folder)


def test_loaded_models_are_what_they_were_after_a_measurement() -> None:
    model = loaded(shared("bitnet"))
    before = model.model.config._attn_implementation
    experiment = read_experiment(CONFIGS / "wt2_bitnet_lsh_bitsampling.yaml", ["seq_len=32", "max_batches=1"])
    evaluate.measure(model, "some text, " * 20, experiment)
    assert model.model.config._attn_implementation == before
