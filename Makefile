# The two commands that matter: `make reproduce` and `make test`. Each target first makes what it needs.
PYTHON ?= python3
PROFILE ?= glyphs
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMP := $(VENV)/.stamp
# BLAS and OpenMP would each start a thread per core in every pytest worker and fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# What every later step imports: looked up (not imported) at each call, imported once after an installation.
KEY := jupyterlab, numpy, open_clip, ood_utils, papermill, pandas, pytest, torch, torchvision, umap
# The stamp holds the folder that it was made in, so a moved checkout, a dead interpreter or a lost package is noticed.
WHOLE := $(shell $(PY) -c "import sys; from importlib.util import find_spec; \
  sys.exit(open('$(STAMP)').read().strip() != '$(CURDIR)' or not all(map(find_spec, 'pip, $(KEY)'.split(', '))))" \
  2>/dev/null && echo yes)

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test test-portable soak lab lint format reference lock clean FORCE

help: ## say what each target does (the default)
	@echo "make TARGET [PROFILE=glyphs] [ARGS='...'] [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  %-13s %s\n", $$1, $$2 }'

setup: $(STAMP) ## make .venv with the pinned packages and this package (the other targets do it for you)

reproduce: $(STAMP) ## run the notebook series of PROFILE and write its report to outputs/PROFILE/index.html
	@echo "reproduce: running the notebooks with profile $(PROFILE); what is done already is skipped"
	@$(PY) -m ood_utils run --profile $(PROFILE) $(ARGS)

test: $(STAMP) ## run the tests (ARGS='-m "not slow"' for daily work, '-k name' picks some, '-n 4' on four cores)
	@echo "test: running the tests in two processes, one thread each"
	@$(ONE_THREAD) $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-portable: $(STAMP) ## run the numeric tests as older CPUs and Intel's with 1, 2 and 4 threads would (half an hour)
	@$(PY) tests/portable.py $(ARGS)

soak: $(STAMP) ## kill a run at random moments, fill its disk, and see that it goes on to the same tables (half an hour)
	@$(PY) tests/soak.py $(ARGS)

lab: $(STAMP) ## open JupyterLab on notebooks/
	@echo "lab: starting JupyterLab on notebooks/; Ctrl-C stops it"
	@$(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(ARGS)

lint: $(STAMP) ## check style, formatting, and that the notebooks carry no outputs
	@echo "lint: ruff check, ruff format --check, nbstripout --verify"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(if $(NOTEBOOKS),$(PY) -m nbstripout --keep-id --verify $(NOTEBOOKS))

format: $(STAMP) ## format the code and strip the notebooks' outputs
	@echo "format: ruff check --fix, ruff format, nbstripout"
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .
	@$(if $(NOTEBOOKS),$(PY) -m nbstripout --keep-id $(NOTEBOOKS))

reference: $(STAMP) ## copy the finished run of PROFILE into outputs/reference and its headline into the README
	@$(PY) -m ood_utils.tools.reference $(PROFILE)

lock: $(STAMP) ## resolve requirements.lock anew after a change of pyproject.toml (ARGS=--upgrade: newest versions)
	@echo "lock: resolving requirements.lock with uv"
	@$(PIP) install -q uv && $(PY) -m uv pip compile -q pyproject.toml -o requirements.lock $(ARGS)

clean: ## remove caches and build leftovers; runs in outputs/ and .venv stay
	@echo "clean: removing caches and build leftovers"
	@rm -rf .pytest_cache .ruff_cache .hypothesis build dist
	@find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# Pinned packages, then this package without touching them, then proof that they import; only then the stamp.
$(STAMP): requirements.lock pyproject.toml $(if $(WHOLE),,FORCE)
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "error: there is no '$(PYTHON)'; install Python 3.11 or later, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "error: '$(PYTHON)' is older than Python 3.11; install a later one, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { echo "error: '$(PYTHON)' cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@rm -f $(STAMP)
	@fill() { \
	  $(PY) -c "import pip" 2>/dev/null || { echo "setup: making $(VENV)"; $(PYTHON) -m venv --clear $(VENV) || exit 1; }; \
	  echo "setup: installing the pinned packages into $(VENV) (about 2 GB to download the first time: minutes)"; \
	  [ -t 1 ] || quiet=-q; \
	  $(PIP) install $$quiet --no-compile -r requirements.lock && $(PIP) install -q --no-deps --no-build-isolation -e . || { \
	    echo "error: the packages could not be installed; see pip's message above, then call make again" >&2; exit 1; }; \
	}; \
	proof() { $(PY) -c "import $(KEY)"; }; \
	fill; proof || { echo "setup: $(VENV) is damaged; making it afresh"; rm -rf $(VENV); fill; proof; } || { \
	  echo "error: the packages are installed but cannot be imported; see the traceback above" >&2; exit 1; }
	@echo "$(CURDIR)" > $(STAMP)
	@echo "setup: $(VENV) is ready"
