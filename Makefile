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
AUDIT := .venv-audit
SHIPPED := serve-cpu serve-gpu train load

ifeq ($(UV),)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
else
INSTALL := VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet
endif
TORCH_OPTIONS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: help env demo test test-system check lock audit sbom clean

help:
	@sed -n 's/^#//p' Makefile | head -5
	@echo " targets: env demo test test-system check lock audit sbom clean"

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

# Real processes are tested one after the other, because they measure times; all else on two cores.
test: check
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests --ignore tests/system --ignore tests/loadtest
	@$(BIN)/python -m pytest -q tests/system tests/loadtest

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

# The tools of the two below have an environment of their own.
$(AUDIT)/.complete: requirements/audit.txt
	@test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/audit.txt
	@touch $@

# Known vulnerabilities of all that is installed anywhere.  It fails too when they cannot be looked up.
audit: $(AUDIT)/.complete
	@status=0; for lock in $(SHIPPED) dev torch audit build; do \
		$(AUDIT)/bin/pip-audit --strict --progress-spinner off --no-deps --disable-pip -r requirements/$$lock.txt || status=1; \
	done; test $$status = 0 || { echo "make audit: not clean, or not done: 'could not be audited' above means that PyPI was not reached" >&2; exit 1; }

# What each image is locked to, as CycloneDX; of pins that depend on the Python version, all.
sbom: $(AUDIT)/.complete
	@mkdir -p build/sbom
	@for lock in $(SHIPPED); do \
		torch=$$(test $$lock = train && echo requirements/torch.txt); \
		cat requirements/$$lock.txt $$torch | PYTHONWARNINGS=ignore $(AUDIT)/bin/cyclonedx-py requirements - \
			--pyproject pyproject.toml --mc-type application --output-reproducible --of JSON -o build/sbom/$$lock.json || exit 1; \
	done; echo "build/sbom: $(SHIPPED:=.json)"

clean:
	rm -rf $(VENV) $(AUDIT) $(DEMO) build *.egg-info
