# Everything runs in .venv, which the first target that needs it sets up. `make PYTHON=python3.12 test` picks another
# interpreter; `make VENV= PY=python3 gpu` uses an environment that is there already.
PYTHON ?= python3
VENV ?= .venv
PY ?= $(VENV)/bin/python
READY := $(if $(VENV),$(VENV)/.ready,)
CONF ?= conf.yml
# One more than the cores of CI, because some tests only wait for a limit to pass.
WORKERS ?= 3

.PHONY: bench test test-all lint docs report gpu clean

bench: $(READY)  ## run the sweep of conf.yml and say where the report lies
	$(PY) -m harness.sweep $(CONF)

test: lint  ## lint, types and every test that is not slow
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

test-all: lint  ## the slow tests too
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "slow or not slow"

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

docs: $(READY)  ## the documentation site into site/; warnings are errors
	$(PY) -m mkdocs build --strict

report: $(READY)  ## render the newest run again: make report, or make report RUN=reports/runs/...
	$(PY) -m harness.report $(or $(RUN),$(shell ls -dt reports/runs/*/ | head -n 1))

gpu: $(READY)  ## contract suite and a bfloat16 sweep on the CUDA device
	$(PY) -m attentions.contract --all --device cuda --quiet
	$(PY) -m harness.sweep $(CONF) --set device=cuda --set dtype=bfloat16 --set budget.total_s=360

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) reports/runs site
