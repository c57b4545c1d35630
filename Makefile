# One virtual environment, .venv, made on first use from pyproject.toml under the exact pins of
# constraints.txt. PYTHON chooses the interpreter, PIP_FLAGS adds options to every pip install.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS)

.PHONY: help demo test check format tiny-stack clean

help:
	@echo "make demo        generate with held-out references on the bundled stack: one contact sheet"
	@echo "make test        all tests"
	@echo "make check       format, lint, strict types, import contract"
	@echo "make format      format and fix what can be fixed by itself"
	@echo "make tiny-stack  train the bundled stack anew (hours)"
	@echo "make clean       remove .venv and caches"

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 found; pass PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The package with what it needs to run ...
$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

# ... and the tools that check it.
$(VENV)/.tools: $(VENV)/.installed
	$(PIP) --editable '.[train,docs,dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/imageprompt demo

test: $(VENV)/.tools
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: $(VENV)/.tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tiny-stack: $(VENV)/.installed
	cd dev && ../$(BIN)/python -m bundled_stack

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
