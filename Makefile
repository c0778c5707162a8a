# Two commands do everything: `make demo` and `make test`. Both work on a clean clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tiny models here are slower on several threads than on one.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test docs notebooks fresh compat lint check bench ndif browser clean

demo: $(VENV)/.installed
	$(BIN)/moe-interp audit --model organism:topic --prompts organism --out out/demo --force

test: lint check docs fresh

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

check: $(VENV)/.dev browser
	$(BIN)/pytest
	$(BIN)/pytest -m conformance
	$(BIN)/pytest -m long --dist loadgroup
	$(BIN)/pytest -o addopts="--strict-markers --import-mode=importlib" -n 2 --dist loadscope tests/unchecked
	$(MAKE) ndif

# The tutorials, run and kept as notebooks; those that did not change are not run again.
notebooks: $(VENV)/.dev
	$(BIN)/python tutorials/build.py

# The documentation, offline and with warnings as errors; its pages are opened in a browser.
docs: $(VENV)/.dev notebooks browser
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/pytest -o addopts="--strict-markers --import-mode=importlib" -m docs tests/docs

# What a user does: the wheel in an environment of its own, an audit outside the source tree.
fresh: $(VENV)/.dev
	$(BIN)/python tests/fresh_install.py

# The oldest and the newest supported nnsight and transformers, or PINS="transformers==5.24.0".
compat: $(VENV)/.dev
	$(BIN)/python tests/compatibility.py $(PINS)

# Every ratio that benchmarks/RESULTS.md names, in one run: out/bench.json and a table.
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/bench.py --json out/bench.json

# A real NDIF server, on this machine alone. What it runs on is built once, under .ndif/: 1.7 GB,
# three minutes of computing. Where that fails, so does this.
ndif: $(VENV)/.dev
	PYTHON=$(BIN)/python bash tests/ndif/rig/install.sh .ndif/venv
	$(BIN)/pytest -o addopts="--strict-markers --import-mode=importlib" -m ndif tests/ndif

# The report is tested in real browsers. Debian's packages are installed where that is allowed.
browser:
	@{ command -v chromium && command -v firefox-esr; } >/dev/null || { \
	  echo "a browser is missing: installing Debian's packages"; \
	  apt-get update -qq && apt-get install -y -qq chromium firefox-esr fonts-dejavu-core; } || \
	  echo "no chromium or firefox: their tests will be skipped, or fail where CI is set"

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "moe_interp needs Python 3.11 or newer; set PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	@touch $@

clean:
	rm -rf out dist build docs/_build docs/reference docs/tutorials/*.ipynb .pytest_cache .ruff_cache .import_linter_cache
