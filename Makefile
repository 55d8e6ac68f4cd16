# Everything a newcomer or a contributor runs. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch's own index of CPU builds, if your package index has none: make demo TORCH_INDEX=<its address>
TORCH_INDEX ?=
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
# A file stays in one process: its tests share what they train.
PYTEST_ARGS ?= -n 2 --dist loadfile
# m, errors of the position; its noise has a deviation of 0.02.
DEMO_SIZES := 0.01,0.02,0.04,0.06,0.1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Empty is off: without bytecode every process of the suite compiles the package, and pytest its tests, again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo demo-r2dn demo-lstm test test-fast soak lint type format docs wheel-check bench gpu clean

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

demo: setup ## train two policies, prove and attack their returns (three minutes); writes results/demo/report.html
	@rm -rf results/demo
	@$(MAKE) --no-print-directory -j 2 demo-r2dn demo-lstm
	@$(BIN)/robust-policies report results/demo/r2dn results/demo/lstm -o results/demo
	@echo "The report: $(CURDIR)/results/demo/report.html"

demo-r2dn: RECIPE := train/mass_spring_damper_youla_certified.yaml
demo-lstm: RECIPE := train/mass_spring_damper_lstm_apg.yaml
demo-r2dn demo-lstm: export OMP_NUM_THREADS := 1
# Exit status 1 of certify says that nothing is proven, as of every LSTM.
demo-r2dn demo-lstm: demo-%:
	@$(BIN)/robust-policies train $(RECIPE) -o results/demo/$* --no-evaluate
	@$(BIN)/robust-policies certify results/demo/$* || test $$? -eq 1
	@$(BIN)/robust-policies certify results/demo/$* --return --sizes $(DEMO_SIZES) --episodes 16 || test $$? -eq 1

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

# No `setup`: a machine with a GPU may have no network, and gets its environment carried in. Tests that fail, or take more
# than 90 seconds, leave the 370 of the benchmark alone.
gpu: ## what needs a CUDA device: its tests, then benchmarks/gpu.json (at most eight minutes)
	@status=0; timeout --signal=INT 90 $(BIN)/python -m pytest -n 0 -m gpu $$(grep -rl --include="*.py" "mark\.gpu" tests) || status=$$?; \
	$(BIN)/python benchmarks/gpu.py --output benchmarks/gpu.json && exit $$status

clean: ## remove the virtual environment and build products
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache
