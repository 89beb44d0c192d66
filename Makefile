# Every target builds .venv first if it is missing, or older than pyproject.toml or constraints.txt.
# `make test PYTHON=python3.12` picks the Python it is built with; `make test PART=gates` runs one part's tests.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Where the libraries of `make ecosystem` are installed: some gigabytes.
ECOSYSTEM ?= .venv-ecosystem

# The tested versions hold for build requirements too (the second name is that of pip 25.3 and later).
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A part is a folder in tests/, and what it tests is the folder of the same name in lightning_fl_ext/.
PARTS := $(sort $(patsubst tests/%/,%,$(dir $(wildcard tests/*/test_*.py tests/*/*/test_*.py tests/*/*/*/test_*.py))))
ifneq ($(PART),)
part := $(patsubst %/,%,$(PART))
ifeq ($(and $(filter 1,$(words $(part))),$(filter $(part),$(PARTS))),)
$(error There is no part '$(PART)'. The parts: $(PARTS))
endif
endif

.DEFAULT_GOAL := help
.PHONY: help demo processes test test-fast test-portable floors fuzz engines faults ecosystem lint docs pictures \
    examples bench clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## Train ten simulated clients on handwritten digits, and show what comes out
	@$(BIN)/python examples/federated_digits.py

test: $(READY)  ## Run all tests; with PART=gates, or PART=server/durability, those of one part
ifeq ($(PART),)
	$(BIN)/python -m pytest -n 3 --dist worksteal
else
	$(BIN)/python -m pytest tests/$(part) $(wildcard lightning_fl_ext/$(part))
endif

test-fast: $(READY)  ## Run the tests that start no other engine
	$(BIN)/python -m pytest -n 3 --dist worksteal -m 'not engines'

fuzz: $(READY)  ## Feed damaged input to everything that is decoded, for ten minutes or FUZZ="--seconds 60"
	@$(BIN)/python tests/fuzz/_decoders.py $(FUZZ)

test-portable: $(READY)  ## Run the tests that start no other engine on arithmetic like another processor's
	@PYTHON=$(BIN)/python tests/portable.sh

floors: $(READY)  ## Run the tests that start no other engine with the lowest and with the newest versions of all libraries
	$(BIN)/python tests/floors.py lowest
	$(BIN)/python tests/floors.py newest

processes: $(READY)  ## Run clients over two processes: every launcher, sharded modules, ranks that fail
	$(BIN)/python -m pytest -m 'slow or not slow' tests/client/launcher tests/client/test_processes.py \
	    tests/client/algorithms/test_precisions.py tests/engines/test_processes.py

engines: $(READY)  ## Train one federation on every engine, and compare the digests
	@$(BIN)/python tests/engines/_comparison.py

faults: $(READY)  ## Break real federations in every way that docs/faults.md lists, and follow docs/deployment.md
	$(BIN)/python -m pytest -n 2 -m engines tests/engines/test_faults.py tests/engines/test_slow_faults.py \
	    tests/engines/test_guide.py tests/engines/test_secure_faults.py

ecosystem: $(ECOSYSTEM)/.ready  ## Federate modules of other libraries, in an environment of their own; or ONLY=timm
	@$(ECOSYSTEM)/bin/python -m ecosystem $(ONLY)

lint: $(READY)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## Build the documentation into docs/_build; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build
	@echo "Open docs/_build/index.html"

pictures: $(READY)  ## Take the pictures in the documentation anew; needs Chromium
	@$(BIN)/python docs/pictures.py

examples: $(READY)  ## Run every example, one by one, in a temporary folder
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && root=$$PWD && cd "$$folder" && \
	for example in "$$root"/examples/*.py; do \
	    echo "== $${example##*/}"; \
	    MPLBACKEND=Agg "$$root/$(BIN)/python" "$$example" || exit 1; \
	done && \
	echo "== digits_app" && cd "$$root/examples/digits_app" && "$$root/$(BIN)/python" -m digits_app

bench:  ## List the benchmark commands
	@for script in benchmarks/*.py; do \
	    printf '%s\n    %s\n' "$(BIN)/python $$script" "$$(sed -n '1s/^"""\(.*[^"]\)"*$$/\1/p' $$script)"; \
	done

clean:  ## Remove .venv and everything that was built
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-ecosystem docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed; $(PYTHON) is not. Name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Building $(VENV): the first time this downloads PyTorch and takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

$(ECOSYSTEM)/.ready: ecosystem/requirements.txt
	$(PYTHON) -m venv $(ECOSYSTEM)
	PIP_CONSTRAINT=ecosystem/requirements.txt $(ECOSYSTEM)/bin/python -m pip install -q \
	    -r ecosystem/requirements.txt -e .
	@touch $@
