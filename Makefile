# `make` lists what there is. Everything runs in .venv, which `make setup` keeps up to date.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit chaos lint docs format clean

ifneq ($(words $(CURDIR)),1)
$(error The project's path contains a space, which make cannot handle: $(CURDIR))
endif

# The interpreter to make .venv from. Unset: python3.11, or else python3, if new enough.
PYTHON ?=
# Not exported to all recipes, because `setup` must not take .venv for the Python to make .venv from.
VENV := env PATH="$(CURDIR)/.venv/bin:$$PATH"
# Tests side by side: a run of the real pipeline takes about one and a half cores and 5 GB. Outside of tests/unit a
# file's tests stay in one worker, so that its engines start once.
WORKERS ?= 2
BENCHES = $(filter-out harness,$(patsubst tests/bench/%.py,%,$(wildcard tests/bench/[a-z]*.py)))

help: ## List the targets.
	@sed -nE 's/^([a-z%-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20
	@echo "  benchmarks: $(or $(subst _,-,$(BENCHES)),none yet)"

setup: ## Install the pinned CPU stack into .venv (about 3 minutes the first time, nothing when up to date).
	@PYTHON="$(PYTHON)" requirements/install.sh

demo: setup ## Align a small model from nothing, with the real engines, on the CPU.
	@$(VENV) brain run deploy/recipes/demo.yaml

# Every stage runs, whatever the earlier ones said, so that one run shows everything that is wrong.
test: setup ## Lint, type check and all tests.
	@mkdir -p build; status=0; \
	$(MAKE) lint && lint=passed || { lint=FAILED; status=1; }; \
	$(VENV) pytest tests/unit -n $(WORKERS) --dist worksteal 2>&1 | tee build/test-unit.log || status=1; \
	$(VENV) pytest tests --ignore=tests/unit -n $(WORKERS) --dist loadfile --no-loadscope-reorder 2>&1 \
		| tee build/test-other.log || status=1; \
	printf '\nlint and types: %s\nunit tests:    %s\nother tests:   %s\n' "$$lint" \
		"$$(grep -E ' in [0-9.]+s' build/test-unit.log | tail -n 1 | tr -d =)" \
		"$$(grep -E ' in [0-9.]+s' build/test-other.log | tail -n 1 | tr -d =)"; \
	exit $$status

test-unit: setup ## The unit tests alone: seconds, without Ray, vLLM and DeepSpeed.
	@$(VENV) pytest tests/unit -n $(WORKERS) --dist worksteal

chaos: setup ## One run through power cuts, outages and kills on simulated machines (root only).
	@$(VENV) python -m tests.chaos

lint: setup ## ruff (rules and format) and mypy.
	@status=0; \
	$(VENV) ruff check || status=1; \
	$(VENV) ruff format --check || status=1; \
	$(VENV) mypy || status=1; \
	exit $$status

docs: setup ## Write docs/recipe.md and docs/recipe.schema.json again, from the section classes in common/config.
	@mkdir -p build; $(VENV) brain settings --markdown > build/recipe.md && mv build/recipe.md docs/recipe.md
	@$(VENV) brain settings --schema > build/recipe.schema.json && mv build/recipe.schema.json docs/recipe.schema.json

format: setup ## Format, and fix what ruff can fix.
	@$(VENV) ruff check --fix --exit-zero --quiet; $(VENV) ruff format

bench-%: setup ## Run tests/bench/NAME.py: prints a table, writes build/bench/NAME.json.
	@[ -f tests/bench/$(subst -,_,$*).py ] || { echo "no benchmark '$*'; there are: $(or $(BENCHES),none yet)" >&2; exit 2; }
	@$(VENV) python -m tests.bench.$(subst -,_,$*)

clean: ## Delete build outputs and caches; never runs/, and not .venv.
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . \( -path ./.venv -o -path ./runs -o -path ./.git \) -prune -o -name __pycache__ -exec rm -rf {} +
