# make demo    installs, makes a small data set, trains Oct-I3D on it, tests it, uses it, and draws a report
# make test    installs the development tools too, and runs linters, types and tests
# make docs    builds the documentation into site/, runs its examples, and fails on broken links
# make clean   removes what these made: .venv, data/demo, runs/demo, site and caches; other runs and data stay
#
# Needs Python 3.10 or newer, make and git. Another Python: make demo PYTHON=/path/to/python3.12

# Tried rather than looked up: a python3.11 may be on the path and not work (pyenv).
PYTHON ?= $(shell for python in python3.11 python3; do $$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
RUN := runs/demo
FFMPEG := $(CURDIR)/.venv/ffmpeg
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test mypy pytest docs clean

help:
	@sed -n 's/^# //p' Makefile | sed -n '/^make/p'

# An interrupted demo goes on where it was, a finished one is not trained again (make clean starts anew).
demo: .venv/.installed
	$(BIN)/octvideo demo-data
	$(BIN)/octvideo fit -c demo --resume auto
	$(BIN)/octvideo test -c demo
	$(BIN)/octvideo infer data/demo/test/rotate_clockwise/000.mp4 --ckpt demo
	$(BIN)/octvideo report $(RUN)
	@echo "Everything of this run is in $(RUN)/; training curves and confusion matrix: $(RUN)/report.png"

test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) -j 2 mypy pytest

mypy:
	$(BIN)/mypy

# passive: some tests run more threads than there are cores, which would spin while they wait for each other.
# Without .pyc files each process would compile the tests anew.
pytest: export PYTHONDONTWRITEBYTECODE =
pytest:
	LD_LIBRARY_PATH="$(FFMPEG)$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}" OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
		$(BIN)/python -m pytest -n 2 --dist worksteal

# The site needs no network: nothing in it is loaded from elsewhere. The examples take some minutes.
docs: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not gpu' tests/test_docs.py

.venv/.made:
	@test -n "$(PYTHON)" || { echo "octvideo needs Python 3.10 or newer; if it has another name: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# torch and torchvision in one resolution: builds that differ do not import together.
.venv/.installed: pyproject.toml setup.py | .venv/.made
	$(PIP_INSTALL) -e .
	@touch $@

# What a user gets is in it, so that a fresh checkout resolves and builds once less.
# torchcodec is tested where it finds FFmpeg; not everywhere do the links work, nor is it needed.
.venv/.installed-dev: pyproject.toml setup.py | .venv/.made
	$(PIP_INSTALL) -e '.[dev]'
	$(PIP_INSTALL) -e '.[bucket]'
	-$(BIN)/python tools/link_ffmpeg.py "$(FFMPEG)" > /dev/null
	@touch .venv/.installed $@

clean:
	rm -rf .venv data/demo $(RUN) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find octvideo tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
