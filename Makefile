PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# what an installation depends on, besides Python sources: those are used in place
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)

.PHONY: demo docs test test-fast lint

demo: $(BIN)/.installed
	mkdir -p out
	$(BIN)/stif-rt render demo/clip.mp4 out/demo.mp4 --scale 4 --time-scale 8 --overwrite
	$(BIN)/python demo/picture.py demo/clip.mp4 out/demo.png

test: $(BIN)/.installed-test
	# a process for each core, each with one thread: threads that wait for each other across processes crawl
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# what takes a fraction of a second each, for while one works: under a minute
test-fast: $(BIN)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

# formatting, lint and types, by the hooks of .pre-commit-config.yaml; mypy is that of the virtual environment
lint: $(BIN)/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

# the site, as web pages in out/docs
docs: $(BIN)/.installed-dev
	$(BIN)/python -m sphinx -q -W --keep-going docs out/docs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(BIN)/.installed: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(BIN)/.installed-test: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(BIN)/.installed-dev: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
