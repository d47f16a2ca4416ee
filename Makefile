# The few verbs of this project. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup system demo test test-unit lint fix bench clean

BIN := .venv/bin
# Processes that share the tests: they mostly wait, for containers and for actors.
TEST_PROCESSES ?= 2
STAMP := .venv/.installed

help:  ## list these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with everything the project needs (again only when pyproject.toml changed)

$(STAMP): pyproject.toml scripts/python-setup
	@scripts/python-setup

system:  ## as root: install and start what containers and tests need (Docker Engine, Redis, PostgreSQL, ...)
	@scripts/system-setup

demo: setup  ## start a cluster, run real sessions on real input, show what happened, leave nothing behind
	@$(BIN)/python scripts/with-system $(BIN)/python -m backendai_ray.demo

test: lint  ## check the code, then run every test
	@$(BIN)/python scripts/with-system --require $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadgroup $(PYTEST_ARGS)

test-unit: setup  ## run the tests that need neither Docker nor Ray (seconds)
	@$(BIN)/pytest tests/unit $(PYTEST_ARGS)

lint: setup  ## ruff, format, spelling, strict types, import rules, generated docs
	@scripts/lint

fix: setup  ## let ruff repair and format, and write the generated docs again
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet . && $(BIN)/python scripts/gen-docs

bench: setup  ## measure beside the peers: make bench NAME=session_start
	@$(BIN)/python scripts/with-system $(BIN)/python -m bench $(NAME)

clean:  ## remove what make and the tools made in this folder
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
