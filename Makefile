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

# Processors add in different orders. `make test-portable` runs the tests that compute with the instructions of old
# processors and of those with AVX2, each with one and with two threads. MKL_ENABLE_INSTRUCTIONS acts on Intel's
# processors alone, MKL_CBWR on all.
NUMERICAL = tests/test_golden.py $(shell grep -lE 'assert_close|allclose' tests/test_*.py)
old := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41
avx2 := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
PROCESSORS := old-1 old-2 avx2-1 avx2-2
settings = $($(firstword $(subst -, ,$1))) TEST_THREADS=$(lastword $(subst -, ,$1))

# Every process that the tests and the demo start would otherwise compile our modules anew, and every worker all tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo smoke test test-faults test-slurm test-ray browser test-portable $(PROCESSORS:%=test-%) fuzz bench clean
.DELETE_ON_ERROR:

# Starts afresh after a demo that finished; one that was stopped goes on, as its last line says.
demo: $(VENV)/.core
	@if test -e $(DEMO)/.finished; then rm -rf $(DEMO); fi
	$(BIN)/python -m harness.run --methods frepo,mtt,random_real --dataset digits $(DEMO_FLAGS) --output $(DEMO)
	@touch $(DEMO)/.finished

# Every method once, in seconds: what continuous integration compares with results/smoke.
smoke: $(VENV)/.core
	rm -rf results/local/smoke
	OMP_NUM_THREADS=1 $(BIN)/python -m harness.run --dataset digits --budget smoke --output results/local/smoke \
		--methods frepo,mtt,datm,dc,dsa,dm,bptt,rat_bptt,kip,rcig,ncfm,soft_labels,herding,k_means,k_centre

# One process more than there are processors, at most four: tests wait for other processes and for files.
WORKERS = $(shell $(PYTHON) -c 'import os; print(min(len(os.sched_getaffinity(0)) + 1, 4))')
test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --benchmark-disable --numprocesses $(WORKERS) --dist worksteal

# The faults of tests/faults: 100 kills over all methods, where `make test` has six; some need root, to mount a small disk.
# One after another: where the kernel ends a process for its memory, a kill of ours at that moment would look the same.
test-faults: $(VENV)/.dev
	FAULTS=long $(BIN)/python -m pytest --quiet tests/faults

# What tests/test_html_browser.py needs, which is skipped without: Debian's browser, as root, and what drives it.
browser: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	@test -x /usr/lib/chromium/chromium-headless-shell || { export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium-headless-shell; }

# The launcher on a real Slurm, which is installed as root and runs while the tests do: tests/slurm.
test-slurm: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[slurm]'
	@command -v slurmctld slurmd munged >/dev/null || { export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && apt-get install -qq --yes --no-install-recommends slurmctld slurmd slurm-client munge; }
	FREPO_BENCH_SLURM=1 $(BIN)/python -m pytest --benchmark-disable --durations=0 tests/slurm

test-portable: $(PROCESSORS:%=test-%)

$(PROCESSORS:%=test-%): test-%: $(VENV)/.dev
	@echo 'make $@: $(call settings,$*)'
	@$(call settings,$*) $(BIN)/python -m pytest --benchmark-disable --quiet $(NUMERICAL) \
		|| { echo 'make $@ failed: $(call settings,$*)'; exit 1; }

# Property-based tests with TIMES as many inputs as usual, at random: minutes to hours. A failure prints how to repeat it.
TIMES := 50
fuzz: $(VENV)/.dev
	PROPERTY_TIMES=$(TIMES) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 tests/properties

# The launcher on a real Ray cluster of two nodes, on this machine; an extra of 300 MB.
test-ray: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	FREPO_BENCH_RAY=1 $(BIN)/python -m pytest --benchmark-disable --durations=0 tests/ray

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
