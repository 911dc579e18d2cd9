# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first, from constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := results/local/demo
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: $(VENV)/.core
	rm -rf $(DEMO)
	$(BIN)/python -m harness.run --methods frepo,mtt,random_real --dataset digits --ipc 1 --output $(DEMO)

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --benchmark-disable

clean:
	rm -rf $(VENV) $(DEMO)

# Stamps: a second `make` installs nothing; a changed requirement installs again.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[dev]'
	touch $(VENV)/.core $@
