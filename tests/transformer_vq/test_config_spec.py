"""What a layer's configuration refuses, and in which words; conf.yml's section; the documentation's snippet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from transformer_vq.nn.config_spec import TransformerConfig

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_code": 0}, "n_code=0 is not allowed: it must be an integer from 1 to 2**40"),
        ({"n_code_q": 0}, "n_code_q=0 is not allowed: it must be None or an integer from 1 to 2**40"),
        ({"block_len": 2.5}, "block_len=2.5 is not allowed: it must be an integer from 1 to 2**40"),
        ({"n_head": True}, "n_head=True is not allowed: it must be an integer from 1 to 2**40"),
        ({"n_head": 3}, "n_head=3 is not allowed: it must be a divisor of d_model=8"),
        ({"d_model": None}, "d_model=None is not allowed: it must be an integer from 1 to 2**40"),
        ({"p_dropres": 1.0}, "p_dropres=1.0 is not allowed: it must be a number from 0 to below 1"),
        ({"c_gamma": -0.1}, "c_gamma=-0.1 is not allowed: it must be a number from 0 to below 1"),
        ({"c_beta": float("nan")}, "c_beta=nan is not allowed: it must be a number of at least 0"),
        ({"causal": 1}, "causal=1 is not allowed: it must be True or False"),
        ({"device": 0}, "device=0 is not allowed: it must be cpu, cuda, cuda:<index> or mps"),
        ({"device": "gpu"}, "device='gpu' is not allowed: it must be cpu, cuda, cuda:<index> or mps"),
        ({"lr": 0}, "lr=0 is not allowed: it must be a number above 0"),
        ({"n_code": 2**41}, f"n_code={2**41} is not allowed: it must be an integer from 1 to 2**40"),
        ({"n_cod": 4}, "there is no setting 'n_cod'; did you mean n_code? known settings are d_model, n_head, "),
        ({"zebra": 4}, "there is no setting 'zebra'; known settings are d_model, "),
    ],
)
def test_impossible_setting_is_refused_in_words(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TransformerConfig(**{"d_model": 8, **settings})


def test_a_whole_conf_yml_is_told_from_its_section() -> None:
    whole = yaml.safe_load((ROOT / "conf.yml").read_text(encoding="utf8"))
    with pytest.raises(ValueError, match=re.escape("pass only its section: TransformerConfig(**config['vq'])")):
        TransformerConfig(**whole)


def test_d_model_must_be_given() -> None:
    with pytest.raises(ValueError, match="d_model=None is not allowed"):
        TransformerConfig(n_head=2)


def test_what_is_none_follows_another_setting() -> None:
    config = TransformerConfig(d_model=12, n_head=3, n_code=5, n_code_q=7)
    assert (config.key_dim, config.value_dim, config.query_codes, config.key_codes) == (4, 4, 7, 5)
    odd = TransformerConfig(d_model=8, n_head=3, d_k=2, d_v=5)
    assert (odd.key_dim, odd.value_dim) == (2, 5)


def test_configuration_is_frozen_and_compares_by_value() -> None:
    config = TransformerConfig(d_model=8)
    with pytest.raises(AttributeError):
        config.d_model = 9  # type: ignore[misc]
    assert config == TransformerConfig(d_model=8) != TransformerConfig(d_model=16)


def test_section_of_conf_yml_gives_every_setting_and_only_those() -> None:
    section = yaml.safe_load((ROOT / "conf.yml").read_text(encoding="utf8"))["vq"]
    config = TransformerConfig(**section)
    assert section == {name: getattr(config, name) for name in TransformerConfig.__dataclass_fields__}
    assert (config.d_model, config.n_head, config.n_code, config.block_len) == (1024, 1, 128, 32)


def test_snippet_of_the_documentation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "vq-layer.md").read_text(encoding="utf8")
    (snippet,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "VQAttentionQK" in block)
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(compile(snippet, "vq-layer.md", "exec"), names)
    assert names["output"].shape == names["x"].shape == (4, 1024, 1024)
    assert torch.isfinite(names["output"]).all()
