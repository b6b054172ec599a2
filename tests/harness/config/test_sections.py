"""Sections of conf.yml that belong to other systems: checked key by key, and measured by `--section`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.config.model import load_config
from harness.config.sections import SECTIONS
from harness.config.yaml_source import ConfigError

ROOT = Path(__file__).parents[3]
CONF = ROOT / "conf.yml"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("vq.n_cod=4", "vq.n_cod: this key is unknown; did you mean n_code"),
        ("vq.n_code=0", "vq.n_code: 0 is not allowed; it must be an integer from 1 to 2**40"),
        ("vq.n_head=3", "vq.n_head: 3 is not allowed; it must be a divisor of d_model=1024"),
        ("vq.block_len=2.5", "vq.block_len: 2.5 is not allowed; it must be an integer from 1 to 2**40"),
        ("vq.sequence_len=2000000000000", "vq.sequence_len: 2000000000000 is not allowed; "),
        ("vq.causal=yes please", "vq.causal: 'yes please' is not allowed; it must be True or False"),
        ("vq.p_dropres=1.0", "vq.p_dropres: 1.0 is not allowed; it must be a number from 0 to below 1"),
        ("vq.lr=0", "vq.lr: 0 is not allowed; it must be a number above 0"),
        ("vq.device=toaster", "vq.device: 'toaster' is not allowed; it must be cpu, cuda, cuda:<index> or mps"),
        ("vq=7", "vq: 7 is not allowed; it must be a mapping"),
        ("vq={n_code: 4}", "vq.d_model: this key is missing; it must be an integer from 1 to 2**40"),
    ],
)
def test_a_section_is_checked_like_any_other_key(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(CONF, [override])
    assert any(mistake.startswith(line) for mistake in caught.value.mistakes), caught.value.mistakes


def test_all_mistakes_come_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(CONF, ["vq.n_code=0", "vq.lr=fast", "rounds=0"])
    assert [mistake.partition(":")[0] for mistake in caught.value.mistakes] == ["rounds", "vq.n_code", "vq.lr"]


def test_a_section_may_be_absent(tmp_path: Path) -> None:
    plain = {key: value for key, value in yaml.safe_load(CONF.read_text()).items() if key not in SECTIONS}
    path = tmp_path / "conf.yml"
    path.write_text(yaml.safe_dump(plain))
    assert load_config(path) == load_config(CONF)
    with pytest.raises(ConfigError, match="--section: there is no section vq"):
        load_config(path, section="vq")
    with pytest.raises(ConfigError, match="--section: 'qv' is not allowed; it must be vq"):
        load_config(path, section="qv")


def test_keys_of_the_section_decide_what_is_measured() -> None:
    changes: dict[str, Any] = {"sequence_len": 96, "global_batch_size": 3, "n_head": 2, "d_model": 32, "d_v": 5}
    config = load_config(CONF, [f"vq.{key}={value}" for key, value in changes.items()], section="vq")
    assert (config.lengths, config.batch, config.heads, config.head_dim, config.value_dim) == (
        (96,),
        (3,),
        (2,),
        (16,),
        (5,),
    )
    assert (config.device, config.mode, config.also) == ("cpu", ("train",), ())
    (backend,) = config.backends
    assert backend.settings["section"]["lr"] == 4e-4
    assert load_config(CONF, ["budget.case_s=7"], section="vq").budget.case_s == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vq.causal=false", "vq.causal: false is not allowed here; the model predicts the next byte"),
        ("vq.d_model=1000000000", "vq: training such a layer takes at least [0-9]+ bytes, but this machine has [0-9]+"),
    ],
)
def test_a_section_that_cannot_be_measured_is_refused_before_the_work(override: str, message: str) -> None:
    load_config(CONF, [override])
    with pytest.raises(ConfigError, match=message):
        load_config(CONF, [override], section="vq")
