# make test: set everything up, check and test. make demo: set everything up and run the main job end to end.
.DEFAULT_GOAL := help
PYTHON ?= python3
DEMO_DIR ?= demo
BIN := .venv/bin

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

demo: .venv/installed  ## draw images, extract, train, caption, and write demo/page.html
	$(BIN)/captionmill demo $(DEMO_DIR)

test: .venv/installed-dev .mypy/captionmill  ## format check, lint, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

cli-docs: .venv/installed-dev  ## write docs/cli.md again from the program's help
	$(BIN)/python scripts/write_cli_docs.py

site: .venv/installed-dev  ## build the documents as a site, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove what the targets made
	rm -rf .venv .mypy .mypy_cache .pytest_cache .ruff_cache *.egg-info build demo site
	find . -name __pycache__ -prune -exec rm -r {} +

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "captionmill needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.mypy/captionmill:
	mkdir -p .mypy
	ln -sfn .. .mypy/captionmill

.PHONY: help demo test cli-docs site clean
