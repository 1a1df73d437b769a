# Every target sets up .venv by itself and installs again only when a dependency file changed.
#   make demo PYTHON=python3.12           another Python (3.11 or newer)
#   make test JOBS=0                      in one process; by default as many share the tests as there are cores, four at most
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"   torch without GPU packages on Linux

PYTHON ?= python3
PIP_FLAGS ?=
JOBS ?= logical
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
NEEDS := pyproject.toml constraints.txt

.PHONY: demo test lab bench lint clean
.DEFAULT_GOAL := demo

demo: .venv/installed  ## train four methods on real text, draw what they sent, check the papers' claims
	$(BIN)/lab reproduce 00_start_here
	@echo "The page above opens in any browser. To go on by yourself: make lab"

test: .venv/installed-test  ## the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist worksteal

lab: .venv/installed  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=. notebooks/00_start_here.ipynb

bench: .venv/installed  ## speed and memory against the ceiling, as ratios
	$(BIN)/python -m bench

lint: .venv/installed-dev  ## style, types, and notebooks without outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify notebooks/*.ipynb

clean:  ## remove the environment and caches, never runs/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

.venv/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Isthmus needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11 …" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/pip $(NEEDS)
	@echo "Installing the lab into .venv (torch and JupyterLab: two to five minutes the first time) …"
	$(INSTALL) -e .
	@touch $@

.venv/installed-test: .venv/installed $(NEEDS)
	$(INSTALL) -e ".[test]"
	@touch $@

.venv/installed-dev: .venv/installed-test $(NEEDS)
	$(INSTALL) -e ".[dev]"
	@touch $@
