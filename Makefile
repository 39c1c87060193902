# Two commands for users (demo, test), two for developers (check, docs). All work from a fresh clone.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check docs clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: $(STAMP)  ## the whole road on a tiny model: SFT, align, RL, eval, report
	$(BIN)/prism run tiny

test: $(STAMP)  ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP)  ## style, layers, types, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	$(BIN)/python -m prism_cli.recipes.document --check
	$(BIN)/python -m prism_cli.cli.document --check

docs: $(STAMP)  ## writes docs/recipes.md and docs/cli.md
	$(BIN)/python -m prism_cli.recipes.document --write
	$(BIN)/python -m prism_cli.cli.document --write

clean:  ## removes the environment; runs stay
	rm -rf $(VENV)
