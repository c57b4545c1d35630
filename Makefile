# One virtual environment, .venv, made on first use from pyproject.toml under the exact pins of
# constraints.txt. PYTHON chooses the interpreter, PIP_FLAGS adds options to every pip install,
# PYTEST_FLAGS adds options to pytest (-n0: one process).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_FLAGS ?=
PYTEST_FLAGS ?=
ATTACK_FLAGS ?=
STACK_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS)
SITE := docs/_build/html

.PHONY: help demo test attacks check docs format bundled-stack clean

help:
	@echo "make demo           generate with held-out references on the bundled stack: one contact sheet"
	@echo "make test           run all tests, in one process more than cores"
	@echo "make attacks        all attacks of strangers, a minute of random mutations, every kill"
	@echo "make check          format, lint, strict types, import contract, docs"
	@echo "make docs           build the documentation in $(SITE); warnings are errors"
	@echo "make format         format the code and apply the automatic fixes"
	@echo "make bundled-stack  train the bundled stacks anew (hours; STACK_FLAGS: one of them)"
	@echo "make clean          remove .venv, the built documentation and all caches"

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
	$(PIP) --editable '.[train,docs,dev,deploy]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/imageprompt demo

# Compiled modules are stored, whatever the environment says: many tests start processes.
test: export PYTHONDONTWRITEBYTECODE :=
# Large pages, where glibc and Linux have them: fewer page faults.
test attacks: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
test: $(VENV)/.tools
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

attacks: $(VENV)/.tools
	$(BIN)/python -m tests.attacks $(ATTACK_FLAGS)
	$(BIN)/python -m pytest --whole $(PYTEST_FLAGS)

check: $(VENV)/.tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python dev/generated_docs.py --check
	$(MAKE) --no-print-directory docs

# A fresh environment (-E) every time, since the pages also depend on the code.
docs: $(VENV)/.tools
	$(BIN)/python -m sphinx --quiet --builder html --fresh-env --nitpicky --fail-on-warning \
		--keep-going docs $(SITE)
	$(BIN)/python dev/check_site.py $(SITE)

format: $(VENV)/.tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bundled-stack: $(VENV)/.installed
	cd dev && ../$(BIN)/python -m bundled_stack $(STACK_FLAGS)

clean:
	rm -rf $(VENV) docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find benchmarks dev docs src tests -name __pycache__ -prune -exec rm -rf {} +
