# Every target is a thin name for one command; `make help` lists them. Variables may be given on the command line:
#   DATA_ROOT=<your data sets> RUNS_ROOT=<what we make> DATASET=... PROTOCOL=... PRESET=... RUN=... LABELS=... ARGS="..."
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
RUN_PY := $(VENV)/bin/python
DGREID := $(RUN_PY) -m pipelines

DATA_ROOT ?= data
RUNS_ROOT ?= runs
PRESET ?= paper
export DATA_ROOT RUNS_ROOT

# name=value -> --name value, only when given
option = $(if $($(1)),--$(2) '$($(1))')

.PHONY: help
help: ## list every target
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; fix: install Python 3.11 or newer, or name one with PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; fix: make PYTHON=python3.11 ..."; exit 2; }
	@test -x $(RUN_PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once, several minutes: torch is large)"
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[labeler,reid,dev]'
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## create .venv and install the locked versions

.PHONY: demo
demo: install ## the whole way on generated pedestrians: crops -> labels -> training -> report
	@$(DGREID) demo

.PHONY: test
test: install ## all tests
	@$(RUN_PY) -m pytest

.PHONY: lint
lint: install ## style, types and import order
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

.PHONY: datasets
datasets: install ## what is under DATA_ROOT, what is missing and where to put it
	@$(DGREID) datasets

.PHONY: manifest
manifest: install ## scan a data set into its manifest: DATASET=viper
	@$(DGREID) manifest '$(DATASET)'

.PHONY: label
label: install ## part boxes for a data set: DATASET=viper [ENGINE=body_prior|vllm_server] [URL=...] [LABELS=...]
	@$(DGREID) label '$(DATASET)' $(call option,ENGINE,engine) $(call option,URL,url) $(call option,LABELS,label-run) $(ARGS)

.PHONY: train
train: install ## both stages: PROTOCOL=3dpes+caviar2viper PRESET=tiny [LABELS=...] [RUN=...] [ARGS="stage2.epochs=5"]
	@$(DGREID) train '$(PROTOCOL)' --preset '$(PRESET)' $(call option,LABELS,label-run) $(call option,RUN,run) $(ARGS)

.PHONY: eval
eval: install ## score a training run on its targets: [RUN=...] (default: the newest)
	@$(DGREID) eval $(call option,RUN,run)

.PHONY: report
report: install ## report.json, report.md and report.html of a run: [RUN=...] (default: the newest)
	@$(DGREID) report $(call option,RUN,run) $(ARGS)

.PHONY: sql
sql: install ## ask the labels: DATASET=viper [Q="select ..."] or Q=<canned query>; without Q lists the canned ones
	@$(DGREID) sql '$(DATASET)' $(call option,Q,query)

.PHONY: serve
serve: install ## the labelling service on 127.0.0.1:8300, settings from LABELER_* variables
	@$(RUN_PY) -m labeler serve

.PHONY: vllm
vllm: ## a vLLM server for the labelling service (GPU, needs `pip install vllm`): MODEL=Qwen/Qwen2.5-VL-7B-Instruct
	@docker/serve_vllm.sh '$(MODEL)'

.PHONY: doctor
doctor: install ## check Python, packages, devices, data sets, labels and the service
	@$(DGREID) doctor

.PHONY: bench-synthetic
bench-synthetic: install ## images per second of the pedestrian generator
	@$(RUN_PY) tests/benchmarks/bench_synthetic.py

.PHONY: lock
lock: install ## write the versions in .venv to constraints.txt
	@$(VENV)/bin/pip freeze --exclude-editable | LC_ALL=C sort -f > constraints.txt.new && mv constraints.txt.new constraints.txt

.PHONY: clean
clean: ## remove .venv and caches (never data or runs)
	@rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
