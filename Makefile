# `make demo` and `make test` are all a new user needs; both set everything up first.
PYTHON ?= python3
VENV := $(or $(OMNI_RL_VENV),.venv)
BIN := $(VENV)/bin
# A file's tests in one process: what a file starts is started once. Of the quick ones many wait for others.
PYTEST := $(BIN)/pytest --dist loadfile

.PHONY: help setup demo test test-slow check format sabotage mutants bench screenshots lock wheel clean

help:
	@echo "make setup      make $(VENV) (done by the others when needed)"
	@echo "make demo       run the main job: vLLM rollouts against an FSDP2 copy, on real media (3 minutes)"
	@echo "make test       the quick tests (4 minutes)"
	@echo "make test-slow  the end-to-end tests: real vLLM, Ray, FSDP2 (50 minutes)"
	@echo "make check      ruff, mypy, and which room imports which"
	@echo "make sabotage   break a live service on purpose, fault by fault, and see what it says (6 minutes)"
	@echo "make mutants    change the code at random and see what its room's tests do not notice (an hour)"
	@echo "make bench      the benchmarks (writes bench/)"
	@echo "make wheel      the package, for pip install in an environment of yours (writes dist/)"
	@echo "make screenshots  the dashboard's pictures, from the demo and a service (writes docs/pictures/)"

setup:
	@$(PYTHON) tools/setup.py

demo: setup
	@$(BIN)/omni-rl demo $(ARGS)

test: setup
	@$(PYTEST) -n 3 $(ARGS)

# In the order of the files: the longest have the fewest tests, and would come last otherwise.
test-slow: setup
	@$(PYTEST) -n 2 --no-loadscope-reorder -m slow --durations=15 $(ARGS)

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

sabotage: setup
	@$(BIN)/omni-rl sabotage $(ARGS)

mutants: setup
	@python=$$($(BIN)/python tools/frameworks.py mutants) && $$python -m tools.mutants $(ARGS)

bench: setup
	@$(BIN)/omni-rl bench all

screenshots: setup
	@$(BIN)/python tools/screenshots.py $(ARGS)

lock: setup
	@$(BIN)/python tools/lock.py

# The build backend is in the lock; without an environment pip fetches that one package.
wheel:
	@$(if $(wildcard $(BIN)/hatchling),$(BIN)/python,$(PYTHON)) -m pip --disable-pip-version-check wheel --quiet --no-deps \
		$(if $(wildcard $(BIN)/hatchling),--no-build-isolation) --wheel-dir dist .
	@ls dist/omni_rl-*.whl

clean:
	rm -rf $(VENV) .import_linter_cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
