# `make demo` and `make test` do all the set-up; a second call starts at once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
MINUTES ?= 12
SEED ?= 0
CLASSIFIER ?= corrected
EPISODES ?= 200

# One thread per process: two training threads on two busy cores can be 38 times slower than one.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: env demo test test-all lint clean
env: $(STAMP)

demo: $(STAMP)
	$(BIN)/steadyhand demo --minutes $(MINUTES) --seed $(SEED) --classifier $(CLASSIFIER) --evaluate-episodes $(EPISODES) $(if $(RUN),--run $(RUN))

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2

test-all: $(STAMP) lint
	$(BIN)/python -m pytest -m ''

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Steadyhand needs Python 3.10 or newer; give one with: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@# Debian splits ensurepip off; where it is missing, pip installs itself into the new environment.
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) 2>/dev/null || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip install --quiet --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip; }
	$(BIN)/python -m pip install --progress-bar off --quiet -c constraints.txt -e '.[edge,train,sim,dev]'
	@# pynput builds a small C module; the terminal's keys work without it.
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[console]' 2>/dev/null || \
	  echo "pynput could not be built (it needs a C compiler and kernel headers); use: steadyhand operator --keys terminal"
	@touch $@

clean:
	rm -rf $(VENV) build dist
