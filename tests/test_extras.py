"""A package of an extra that is not installed costs a user one line, which says what to run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# `sys.modules[name] = None` makes every import of that package fail as if it were not installed. Prints what each
# command ended with.
WITHOUT = """
import importlib, json, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
found = {}
for command in sys.argv[2:]:
    try:
        importlib.import_module(command).main([])
    except ImportError as error:
        found[command] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""

COMMANDS = {
    "transformers": (
        "bmrt.ablation",
        "bmrt.babilong",
        "bmrt.longbench",
        "bmrt.measure",
        "bmrt.ruler",
        "bmrt.run_single_sample",
        "lsh_bitnet.compare",
        "lsh_bitnet.evaluate",
        "lsh_bitnet.new_york",
        "lsh_bitnet.wikitext103",
        "models.tiny_bitnet",
        "models.tiny_bitnet_exam",
        "models.tiny_bitnet_figure",
        "models.written_induction",
        "benchmarks.swapped_model",
    ),
    "accelerate": ("lsh_v2.train",),
    "tensorboard": ("lsh_v2.train",),
}


def says(package: str) -> str:
    return (
        f"{package} is not installed; run `pip install 'attention-bench[models]'`, or in a checkout "
        "`pip install -e '.[models]'`"
    )


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", COMMANDS)
def test_commands_without_a_package_of_an_extra_say_what_to_install(package: str) -> None:
    done = run("-c", WITHOUT, package, *COMMANDS[package])
    output = f"MissingExtraError: {says(package)}"
    assert json.loads(done.stdout) == dict.fromkeys(COMMANDS[package], output), done.stderr


def test_missing_extra_ends_a_program_in_one_line() -> None:
    done = run("-c", "import sys; sys.modules['transformers'] = None; import bmrt")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{says('transformers')}\n")
    done = run("-c", "import sys; sys.modules['transformers'] = None\ntry:\n import bmrt\nexcept ImportError:\n 1 / 0")
    assert "ZeroDivisionError" in done.stderr, "any other error keeps its traceback"


def test_core_works_without_any_extra() -> None:
    program = """
import sys
for name in ("transformers", "datasets", "accelerate", "tensorboard", "ray", "flash_attn", "wandb", "mlflow"):
    sys.modules[name] = None
import torch, attentions, lsh_v2, tasks.synthetic, harness.report.__main__, harness.regress, harness.profile
from harness.sweep import main
for name in attentions.BACKENDS:
    attentions.build(name, heads=1, head_dim=16)(*(torch.randn(1, 1, 9, 16) for _ in range(3)))
sys.exit(main(["conf.yml", "--dry-run"]))
"""
    done = run("-c", program)
    assert (done.returncode, done.stderr) == (0, "")
