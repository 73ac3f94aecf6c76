# Two commands do everything, installing included: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test install format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed ## train a tokenizer and a prior on drawings, sample pictures: about 10 minutes, result in runs/demo
	@$(BIN)/python demo.py

test: .venv/dev ## lint, then every test that needs no GPU
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

install: .venv/dev ## only make .venv, with what developing needs

format: .venv/dev ## let ruff order imports and lines
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the demo's run and caches; .venv, datasets and other runs stay
	rm -rf runs/demo .pytest_cache .ruff_cache .hypothesis

# pip is asked for this project and for nothing newer than constraints.txt names.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make demo PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	@touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
