# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first, from constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := results/local/demo
DEMO_FLAGS := --ipc 1 --budget quick

define install
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d; \
	at least 3.11 is needed: make PYTHON=python3.11" % v[:2])'
	@echo "installing the versions of constraints.txt into $(VENV); this takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable $(1)
endef

.PHONY: demo test bench clean
.DELETE_ON_ERROR:

# Starts afresh after a demo that finished; one that was stopped goes on, as its last line says.
demo: $(VENV)/.core
	@if test -e $(DEMO)/.finished; then rm -rf $(DEMO); fi
	$(BIN)/python -m harness.run --methods frepo,mtt,random_real --dataset digits $(DEMO_FLAGS) --output $(DEMO)
	@touch $(DEMO)/.finished

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --benchmark-disable

bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks/speed

clean:
	rm -rf $(VENV) $(DEMO)

# Stamps: a second `make` installs nothing; a changed requirement installs again.
$(VENV)/.core: pyproject.toml constraints.txt
	$(call install,.)
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call install,'.[dev]')
	touch $(VENV)/.core $@
