# `make demo` and `make test` build what they need; `make help` lists the rest.
SHELL := bash
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# The newest of the Pythons that every pinned requirement has a wheel for.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c '' 2>/dev/null && echo $$p && break; done)

# Tests run in so many processes, a file at a time in each.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv demo gpu test fuzz check format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## build the environment in .venv

$(STAMP): requirements/dev.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	touch $@

demo: $(STAMP) ## merge the example LoRAs and draw a comparison into out/demo
	$(PY) -m benchmarks.demo

gpu: ## check arithmetic, memory and time on this machine's GPU, nine minutes at most
	GPU_PYTHON="$(GPU_PYTHON)" benchmarks/gpu.sh

test: $(STAMP) ## run the tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

fuzz: $(STAMP) ## read 20,000 damaged and hostile files
	$(PY) -m benchmarks.fuzz --files 20000 --seed 20261201

check: $(STAMP) ## lint, formatting, types, and who may import whom
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(STAMP) ## rewrite the code in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove everything that was built
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
