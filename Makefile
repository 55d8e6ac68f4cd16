# Everything a newcomer or a contributor runs. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch's own index of CPU builds, if your package index has none: make demo TORCH_INDEX=<its address>
TORCH_INDEX ?=
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
# Each process begins with half of the files, whose tests share what they train, and takes over what is left at the end.
PYTEST_ARGS ?= -n 2 --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Empty is off: without bytecode every process of the suite compiles the package, and pytest its tests, again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test test-fast soak lint type format docs wheel-check bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Without a GPU the CPU build of PyTorch is taken where the package index offers one: the default build for Linux brings
# several gigabytes of CUDA libraries along.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@if ! command -v nvidia-smi >/dev/null 2>&1; then \
		$(BIN)/pip install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "torch==$(TORCH)+cpu" -c constraints.txt \
		2>/dev/null || echo "No CPU build of PyTorch $(TORCH) on this package index: taking its default build (see TORCH_INDEX in the Makefile)."; \
	fi
	@$(BIN)/pip install -q "torch==$(TORCH)" -c constraints.txt
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing robust-policies into $(VENV) ..."
	@$(BIN)/pip install -q -c constraints.txt -e ".[test]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(VENV)/.test ## make .venv and install

demo: setup ## train, certify and stress-test a policy; writes results/demo/report.html
	@rm -rf results/demo
	@$(BIN)/robust-policies train train/pendulum_r2dn_gamma6.yaml -o results/demo --no-report
	@$(BIN)/robust-policies train train/pendulum_lstm.yaml -o results/demo/lstm --no-report
	@$(BIN)/robust-policies report results/demo results/demo/lstm -o results/demo/report.html
	@echo "The report: $(CURDIR)/results/demo/report.html"

test: setup ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: setup ## the suite without what trains to a threshold
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow and not soak"

soak: setup ## the long forms of the suite's tests: every environment, a million steps, every seed (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m soak

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.dev ## pyright
	$(BIN)/pyright

format: $(VENV)/.dev ## ruff's formatter and its safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# NO_MKDOCS_2_WARNING: a notice of the theme's about another program's plans.
docs: $(VENV)/.dev ## build the site with the API reference into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel-check: setup ## build the wheel, install it into a new environment and use it
	$(BIN)/python .ci/wheel_check.py

bench: setup ## every benchmark; writes benchmarks/*.json, results/ and docs/images/growth.png (many hours)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/cells.py --output benchmarks/cells.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/envs.py --output benchmarks/envs.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training.py --output benchmarks/training.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/certificates.py --output benchmarks/certificates.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gain.py --seeds 10 --output benchmarks/gain.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/youla_bounds.py --output benchmarks/youla_bounds.json
	OMP_NUM_THREADS=1 $(BIN)/python -m results.youla.example
	OMP_NUM_THREADS=1 $(BIN)/python -m results.youla.doyle
	OMP_NUM_THREADS=1 $(BIN)/python -m results.pendulum.make
	OMP_NUM_THREADS=1 $(BIN)/python -m results.youla.make

clean: ## remove the virtual environment and build products
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache
