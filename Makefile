# Every target sets up .venv by itself and installs again only when a dependency file changed. What is installed is locked, with
# hashes (requirements.lock, requirements-dev.lock); torch comes alone, since which torch depends on the machine.
#   make demo PYTHON=python3.12           another Python (3.11 or newer)
#   make test JOBS=0                      in one process; by default as many share the tests as there are cores, four at most
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu   torch without GPU packages on Linux, from its own index alone
#   make demo LOCKED=no                   the newest versions that fit, instead of the locked ones

PYTHON ?= python3
PIP_FLAGS ?=
TORCH_INDEX ?=
LOCKED ?= yes
JOBS ?= logical
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)
FRONTEND = $(BIN)/python -m widgets.resting
TORCH = $(PIP) -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
ifeq ($(LOCKED),yes)
INSTALL = $(PIP) --require-hashes --no-deps -r $(1).lock && $(TORCH) && $(PIP) --no-deps --no-build-isolation -e . && $(FRONTEND)
else
INSTALL = $(TORCH) && $(PIP) -e ".[$(2)]" && $(FRONTEND)
endif

.PHONY: demo test quick lab bench lint site lock clean
.DEFAULT_GOAL := demo

demo: .venv/installed  ## train four methods on real text, draw what they sent, check the papers' claims
	$(BIN)/lab reproduce 00_start_here
	@echo "The page above opens in any browser. To go on by yourself: make lab"

test: .venv/installed-dev  ## the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist worksteal

quick: .venv/installed-dev  ## under a minute: the laws on one variant a method, the oracles, the engine
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist worksteal -m "not variant and not slow and not processes" \
	  tests/laws tests/oracles tests/engine

BOARD := runs/board.ipynb

lab: .venv/installed  ## JupyterLab: on the first notebook, or once there are runs on all of them
	@first=notebooks/00_start_here.ipynb; \
	if ls runs/*/recipe.json runs/live/*/recipe.json notebooks/runs/*/recipe.json notebooks/runs/live/*/recipe.json 2>/dev/null | grep -q .; then \
	  first=$(BOARD); make_board="$(BIN)/lab board --notebook $(BOARD)"; \
	  if [ -e $(BOARD) ]; then $$make_board >/dev/null & else $$make_board >/dev/null; fi; \
	fi; $(BIN)/jupyter lab --notebook-dir=. $$first

bench: .venv/installed  ## speed and memory against the ceiling, as ratios
	$(BIN)/python -m bench

lint: .venv/installed-dev  ## style, types, who may import whom, and notebooks without outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/nbstripout --verify notebooks/*.ipynb

site: .venv/installed-dev  ## the documentation as a website, in site/; what is not in order ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

lock: .venv/pip  ## the locked versions anew, from constraints.txt and what goes with it: for all systems and Pythons
	$(BIN)/python -m pip install --quiet uv
	for extra in "requirements.lock" "requirements-dev.lock --all-extras"; do \
	  $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-package torch \
	    --constraints constraints.txt --custom-compile-command "make lock" pyproject.toml --quiet -o $$extra || exit 1; done

clean:  ## remove the environment and caches, never runs/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build site *.egg-info

.venv/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Isthmus needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11 …" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/pip pyproject.toml constraints.txt requirements.lock
	@echo "Installing the lab into .venv (torch and JupyterLab: two to five minutes the first time) …"
	@rm -rf isthmus.egg-info  # of a build in this folder: here it would stand before what is installed, and may be older
	$(call INSTALL,requirements,)
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(call INSTALL,requirements-dev,dev)
	@touch $@
