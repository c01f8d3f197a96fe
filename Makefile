# make help says what there is. Each target installs what it needs, once, into .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lab install export readme browser clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

demo: $(READY)  ## video in, trained STASTA out: writes demo/report.html (about 6 minutes on 2 cores)
	$(BIN)/stasta-edu demo --out demo

test: $(READY) browser  ## everything that must hold: exports, floors, notebooks, pytest
	$(BIN)/python .ci/house.py exports
	$(BIN)/python .ci/house.py floors
	OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/nbdev_test --n_workers 2 --timing
	$(BIN)/python -m pytest tests -q --durations=5

lab: $(READY)  ## open JupyterLab on the first notebook
	cd nbs && ../$(BIN)/jupyter lab index.ipynb $$([ "$$(id -u)" = 0 ] && echo --allow-root)

install: $(READY)  ## make .venv and install the library with everything for development

export: $(READY)  ## after editing notebooks: write the modules and README.md, clean the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/house.py readme

browser:
	@command -v chromium >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
	  echo "chromium is not here and could not be installed: the browser tests will be skipped"

clean:  ## remove what the demo and the tests left behind (.venv stays)
	rm -rf demo runs build *.egg-info .pytest_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "$(PYTHON) is not Python 3.10 to 3.13; name one with: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } || \
	  { echo "Python's venv module is missing; install it with: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv

$(READY): settings.ini setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@
