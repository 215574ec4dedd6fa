# Two commands for a fresh machine: `make demo` and `make test`.  Everything lives in .venv; nothing needs root.
#
#   TORCH_INDEX=<URL>   an index that holds the small CPU build of torch, for machines without a GPU
#   PYTHON=python3.12   another interpreter (3.11 or later)
#   DEMO_ONCE=1         `make demo` stops after its ranking instead of serving on

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
LOCKS := requirements/dev.txt requirements/torch.txt
UV := $(shell command -v uv 2>/dev/null)
DEMO := demo

ifeq ($(UV),)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
else
INSTALL := VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet
endif
TORCH_OPTIONS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: help env demo test test-system check lock clean

help:
	@sed -n 's/^#//p' Makefile | head -5
	@echo " targets: demo test test-system check lock clean"

env: $(STAMP)

# uv does not read pip's settings: a folder of wheels that pip is told of counts for uv too.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

# The locks hold all but torch, which has a plain pin: each machine takes the build that its index offers.
$(STAMP): $(LOCKS) pyproject.toml
	@echo "environment in $(VENV)"
	@test -x $(BIN)/python || $(if $(UV),$(UV) venv --quiet --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))
	@$(INSTALL) --require-hashes --no-deps -r requirements/dev.txt
	@$(INSTALL) $(TORCH_OPTIONS) -r requirements/torch.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m loadtest.demo --out $(DEMO) $(if $(DEMO_ONCE),--once)

test: check
	@$(BIN)/python -m pytest -q

check: $(STAMP)
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test-system: $(STAMP)
	@$(BIN)/python -m pytest -q -m debian -rA -p no:logging tests/system

# Requirements files with hashes, without index or find-links lines; torch is left to its pin.
lock:
	@test -n "$(UV)" || { echo "make lock needs uv"; exit 1; }
	env -u UV_FIND_LINKS PATH="$(PATH)" requirements/lock.sh

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
