# Everything runs in .venv, which `make setup` makes from requirements.lock and makes again when that or pyproject.toml changes.
PYTHON ?= python3.11
BUNDLE ?= bundles/maze
PORT ?= 8000
FAULTS ?= 200
FUZZ ?= 30000
MINUTES ?= 10
CONFIG ?= maze
# The release of PyTorch that `make lock` keeps to, in any build (CPU or CUDA).
TORCH ?= 2.13.0

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help setup demo demo-kitchen serve train test test-faults soak fuzz lint format bench lock clean

help: ## list what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: $(STAMP) ## make .venv with Python 3.11 and install everything in it (nothing to do when nothing changed)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "make setup: expected Python 3.11 as '$(PYTHON)', found none; install it, or name it: make setup PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make setup: '$(PYTHON)' cannot make virtual environments; on Debian install python3.11-venv" >&2; exit 1; }
	@echo "Installing into $(VENV): a few minutes the first time, most of them PyTorch."
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: setup ## show a robot in the maze adapt to a goal that it was never trained for (under five minutes)
	@$(PY) -m clients.examples.demo --bundle $(BUNDLE)

demo-kitchen: setup ## show an arm in a kitchen adapt to a sequence of subtasks that it was never trained for, with a video
	@$(PY) -m clients.examples.demo --env kitchen

serve: setup ## start the service on this machine: make serve [BUNDLE=bundles/maze] [PORT=8000]
	@$(PY) -m service --bundle $(BUNDLE) --port $(PORT)

train: setup ## train a bundle from nothing, every stage resumable: make train [CONFIG=maze]
	@$(PY) -m training all --config $(CONFIG)

test: setup ## run all tests
	@$(PY) -m pytest $(PYTEST_OPTIONS)

test-faults: setup ## kill processes, cut the network and the power: make test-faults [FAULTS=200]
	@$(PY) -m pytest tests/faults --kills $(FAULTS) --network-faults $(FAULTS) --timeout 900

soak: setup ## kills, network faults, load and fine-tuning all at once for some minutes: make soak [MINUTES=10]
	@$(PY) -m pytest tests/faults/test_soak.py --soak $(MINUTES)

fuzz: setup ## give each decoder of what comes from outside so many broken inputs: make fuzz [FUZZ=30000]
	@$(PY) -m pytest tests/fuzz --fuzz $(FUZZ) --timeout 3600

lint: setup ## style, types and the direction of imports
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports

format: setup ## write the code in the project's style
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

bench: setup ## benchmarks of serving: latency beside other servers (needs wrk), learner, sessions, ingest, SDK
	@$(PY) -m benchmarks.serving --bundle $(BUNDLE)
	@$(PY) -m benchmarks.in_process --bundle $(BUNDLE)
	@$(PY) -m benchmarks.stream
	@$(PY) -m benchmarks.finetuning --bundle $(BUNDLE)
	@$(PY) -m benchmarks.sessions --bundle $(BUNDLE)
	@$(PY) -m benchmarks.ingest --bundle $(BUNDLE)
	@$(PY) -m benchmarks.client_transport

lock: ## resolve the newest versions that pyproject.toml allows and write requirements.lock
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) deploy/lock.py requirements.lock torch==$(TORCH)

clean: ## remove .venv, caches, build products and demo; runs, data, bundles and sessions stay
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
