# Every target is a thin name for one command; `make help` lists them. Variables may be given on the command line:
#   DATA_ROOT=<your data sets> RUNS_ROOT=<what we make> DATASET=... PROTOCOL=... PRESET=... RUN=... LABELS=... ARGS="..."
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
VENV_VLLM := .venv-vllm
VENV_EXCHANGE := .venv-exchange
VENV_TRACK := .venv-track
RUN_PY := $(VENV)/bin/python
DGREID := $(VENV)/bin/dgreid

DATA_ROOT ?= data
RUNS_ROOT ?= runs
PRESET ?= paper
DGREID_CALLED_AS := $(DGREID)
export DATA_ROOT RUNS_ROOT DGREID_CALLED_AS

# What the user gives reaches a command through the environment, as it was typed: with quotes, >, commas and $.
GIVEN := DATASET FILE PROTOCOL PRESET RUN LABELS ENGINE URL FORMAT SUITE MODEL REPLICAS Q
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export $(GIVEN)

# variable,name -> --name "$variable", only when given
option = $(if $(value $(1)),--$(2) "$$$(1)")

.PHONY: help
help: ## list every target
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; fix: install Python 3.11 or newer, or name one with PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; fix: make PYTHON=python3.11 ..."; exit 2; }
	@test -x $(RUN_PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once, several minutes: torch is large)"
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## create .venv and install the locked versions

.PHONY: demo
demo: install ## the whole way on generated pedestrians: crops -> labels -> training -> report
	@$(DGREID) demo

.PHONY: test
test: install ## all tests
	@$(RUN_PY) -m pytest

$(VENV_VLLM)/.installed: tests/vllm/requirements.txt tests/vllm/requirements-torch.txt tests/vllm/constraints.txt
	@echo "installing vLLM for the CPU into $(VENV_VLLM) (once, several minutes and 8 GB; pip will say that torch is not the one it wants: that is meant)"
	@rm -rf $(VENV_VLLM) && $(PYTHON) -m venv $(VENV_VLLM)
	@$(VENV_VLLM)/bin/pip install --quiet --disable-pip-version-check -r tests/vllm/requirements.txt -c tests/vllm/constraints.txt
	@$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(VENV_VLLM)/bin/pip install --quiet --disable-pip-version-check -r tests/vllm/requirements-torch.txt
	@touch $@

.PHONY: test-vllm
test-vllm: install $(VENV_VLLM)/.installed ## the labeler against the real vLLM on the CPU, with tiny random models
	@$(RUN_PY) -m pytest tests/vllm

$(VENV_EXCHANGE)/.installed: tests/exchange_tools/requirements.txt tests/exchange_tools/constraints.txt
	@echo "installing Label Studio's converter, Datumaro, pycocotools and FiftyOne into $(VENV_EXCHANGE) (once, a few minutes and 1.3 GB)"
	@rm -rf $(VENV_EXCHANGE) && $(PYTHON) -m venv $(VENV_EXCHANGE)
	@$(VENV_EXCHANGE)/bin/pip install --quiet --disable-pip-version-check -r tests/exchange_tools/requirements.txt -c tests/exchange_tools/constraints.txt
	@touch $@

.PHONY: test-exchange
test-exchange: install $(VENV_EXCHANGE)/.installed ## export and import of labels against the real annotation tools
	@$(RUN_PY) -m pytest tests/exchange_tools $(ARGS)

$(VENV_TRACK)/.installed: tests/track/requirements.txt tests/track/requirements-reid.txt tests/track/constraints.txt
	@echo "installing BoxMOT, Ultralytics, deep-sort-realtime and TrackEval into $(VENV_TRACK), and roboflow's reid into $(VENV_TRACK)-reid (once, several minutes and 10 GB)"
	@rm -rf $(VENV_TRACK) $(VENV_TRACK)-reid && $(PYTHON) -m venv $(VENV_TRACK) && $(PYTHON) -m venv $(VENV_TRACK)-reid
	@$(VENV_TRACK)/bin/pip install --quiet --disable-pip-version-check -r tests/track/requirements.txt -c tests/track/constraints.txt
	@$(VENV_TRACK)-reid/bin/pip install --quiet --disable-pip-version-check --pre -r tests/track/requirements-reid.txt
	@touch $@

.PHONY: test-track
test-track: install $(VENV_TRACK)/.installed ## an exported model in the real trackers: BoxMOT, Ultralytics, deep-sort-realtime, roboflow reid [ARGS="-k 'not tracks'"]
	@$(RUN_PY) -m pytest tests/track $(ARGS)

.PHONY: test-images
test-images: install ## each container image's own steps and entry point in a fresh environment: several GB and minutes [ARGS="-k labeler"]
	@$(RUN_PY) -m pytest tests/images $(ARGS)

.PHONY: lint
lint: install ## style, types and import order
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

.PHONY: datasets
datasets: install ## what is under DATA_ROOT, what is missing and where to put it
	@$(DGREID) datasets

.PHONY: manifest
manifest: install ## scan a data set into its manifest: DATASET=viper
	@$(DGREID) manifest "$$DATASET"

.PHONY: protocols
protocols: install ## the published protocols and which can be run here: [SUITE=single_source|leave_one_out|all_images]
	@$(DGREID) protocols $(if $(value SUITE),"$$SUITE")

.PHONY: label
label: install ## part boxes for a data set: DATASET=viper [ENGINE=local|vllm_server|body_prior] [URL=...] [LABELS=...]
	@$(DGREID) label "$$DATASET" $(call option,ENGINE,engine) $(call option,URL,url) $(call option,LABELS,label-run) $(ARGS)

.PHONY: compact
compact: install ## few large shards instead of many small ones: DATASET=viper [LABELS=...]
	@$(DGREID) compact "$$DATASET" $(call option,LABELS,label-run) $(ARGS)

.PHONY: verify-labels
verify-labels: install ## is a label run whole and undamaged: DATASET=viper [LABELS=...] [ARGS=--images]
	@$(DGREID) verify-labels "$$DATASET" $(call option,LABELS,label-run) $(ARGS)

.PHONY: import-masks
import-masks: install ## published part masks of the reference implementation into a label run: FILE=masks.pkl DATASET=market [LABELS=...]
	@$(DGREID) import-masks "$$FILE" "$$DATASET" $(call option,LABELS,label-run) $(ARGS)

.PHONY: export-labels
export-labels: install ## boxes for a tool to correct them in: DATASET=viper FILE=out.json [FORMAT=coco|label-studio|fiftyone] [LABELS=...]
	@$(DGREID) export-labels "$$DATASET" "$$FILE" $(call option,FORMAT,format) $(call option,LABELS,label-run) $(ARGS)

.PHONY: import-labels
import-labels: install ## corrected boxes back, as a new label run: FILE=out.json DATASET=viper [FORMAT=...] [LABELS=<the corrected run>]
	@$(DGREID) import-labels "$$FILE" "$$DATASET" $(call option,FORMAT,format) $(call option,LABELS,corrects) $(ARGS)

.PHONY: train
train: install ## both stages: PROTOCOL=3dpes+caviar2viper PRESET=tiny [LABELS=...] [RUN=...] [ARGS="stage2.epochs=5"]
	@$(DGREID) train "$$PROTOCOL" --preset "$$PRESET" $(call option,LABELS,label-run) $(call option,RUN,run) $(ARGS)

.PHONY: train-grounder
train-grounder: install ## make the pocket grounder from generated people and photos with part boxes [ARGS="--minutes 150 --export DIR"]
	@$(DGREID) train-grounder $(ARGS)

.PHONY: train-clip
train-clip: install ## make the pocket CLIP from captioned people; ends with the files of reid/pocket [ARGS="--rounds 2"]
	@$(DGREID) train-clip $(ARGS)

.PHONY: eval
eval: install ## score a training run on its targets: [RUN=...] (default: the newest) [ARGS=--re-ranking]
	@$(DGREID) eval $(call option,RUN,run) $(ARGS)

.PHONY: embed
embed: install ## features of a folder, data set or video: ARGS="--images viper --out people.parquet" [RUN=...]
	@$(DGREID) embed $(call option,RUN,run) $(ARGS)

.PHONY: index
index: install ## add, replace and remove images of a gallery: ARGS="people.parquet --images FOLDER" [RUN=...]
	@$(DGREID) index $(call option,RUN,run) $(ARGS)

.PHONY: search
search: install ## find a person in a gallery: ARGS="--gallery people.parquet --query crop.jpg" [RUN=...]
	@$(DGREID) search $(call option,RUN,run) $(ARGS)

.PHONY: calibrate
calibrate: install ## probabilities and thresholds of a run's similarities: [RUN=...] [ARGS="--test viper"]
	@$(DGREID) calibrate $(call option,RUN,run) $(ARGS)

.PHONY: duplicates
duplicates: install ## identities that are probably one person, images probably mislabelled: ARGS="people.parquet" [RUN=...]
	@$(DGREID) duplicates $(call option,RUN,run) $(ARGS)

.PHONY: link
link: install ## tracklets of several cameras to people: ARGS="a.parquet b.parquet --out people.csv" [RUN=...]
	@$(DGREID) link $(call option,RUN,run) $(ARGS)

.PHONY: export
export: install ## a run's model for other programs: ARGS="--format onnx --preprocess imagenet --out DIR" [RUN=...]
	@$(DGREID) export $(call option,RUN,run) $(ARGS)

.PHONY: report
report: install ## report.json, report.md and report.html of a run: [RUN=...] (default: the newest)
	@$(DGREID) report $(call option,RUN,run) $(ARGS)

.PHONY: compare
compare: install ## mean and deviation over runs that differ in the seed alone: RUNS='a b c' [ARGS="--out scores.json"]
	@$(DGREID) compare $(RUNS) $(ARGS)

.PHONY: cache
cache: install ## list the packed images that training and evaluation read [ARGS=--clear]
	@$(DGREID) cache $(ARGS)

.PHONY: sql
sql: install ## ask the labels: DATASET=viper Q="select ..." or Q=<canned query>; without Q lists these [ARGS="--format csv"]
	@$(DGREID) sql "$$DATASET" $(call option,Q,query) $(ARGS)

.PHONY: review
review: install ## look at labels and correct them in a browser: DATASET=viper [Q=...] [LABELS=...] [RUN=<training run>]
	@$(DGREID) review $(if $(value DATASET),"$$DATASET") $(call option,Q,query) $(call option,LABELS,label-run) $(call option,RUN,run) $(ARGS)

.PHONY: serve
serve: install ## the labelling service on 127.0.0.1:8300, or with RUN= that of a trained model on 8301; LABELER_* settings
	@$(DGREID) serve $(call option,RUN,run) $(ARGS)

.PHONY: vllm
vllm: $(if $(value REPLICAS),install) ## vLLM for the labelling service (GPU, `pip install vllm`): MODEL=Qwen/Qwen2.5-VL-7B-Instruct [REPLICAS=4]
	@$(if $(value REPLICAS),$(DGREID) vllm "$$MODEL" --replicas "$$REPLICAS" $(ARGS),labeler/engines/serve_vllm.sh "$$MODEL" $(ARGS))

.PHONY: doctor
doctor: install ## check Python, packages, devices, data sets, labels and the service
	@$(DGREID) doctor

.PHONY: bench-synthetic
bench-synthetic: install ## images per second of the pedestrian generator
	@$(RUN_PY) tests/benchmarks/bench_synthetic.py

.PHONY: bench-vllm
bench-vllm: install $(VENV_VLLM)/.installed ## what the service adds to the time of a bare vLLM
	@$(RUN_PY) -m tests.benchmarks.bench_vllm_overhead

.PHONY: bench-labeler
bench-labeler: install ## images per second and memory of annotator and service on two cores: [ARGS="1000 50000"] [ARGS="--embedded 1000000"]
	@$(RUN_PY) tests/benchmarks/bench_labeler.py $(ARGS)

.PHONY: bench-ray
bench-ray: install ## labelling on Ray clusters of 1 to 3 nodes, nodes and driver killed: runs/bench/ray.json; about 10 minutes, resumable [ARGS=--speed|--faults|--pocket|--anew]
	@$(RUN_PY) -m tests.benchmarks.bench_ray $(ARGS)

.PHONY: bench-attacks
bench-attacks: install ## how long the service takes to answer while it is attacked: runs/bench/attacks.json, alone on the machine
	@$(RUN_PY) -m tests.benchmarks.bench_attacks $(ARGS)

.PHONY: bench-eval
bench-eval: install ## speed and memory of scoring, re-ranking and image loading: [ARGS="market rerank --scale 0.1"]
	@$(RUN_PY) tests/benchmarks/bench_eval.py $(ARGS)

.PHONY: bench-model
bench-model: install ## our model against plain open_clip: speed and memory, alone on the machine [ARGS="--rounds 2"]
	@$(RUN_PY) tests/benchmarks/bench_model.py $(ARGS)

.PHONY: bench-data
bench-data: install ## speed of packing and of packed batches, time around a training step, memory of a large training set
	@$(RUN_PY) tests/benchmarks/bench_data.py $(ARGS)

.PHONY: bench-masks
bench-masks: install ## which form of the attention mask is fastest here [ARGS="--batch 64 --flex"]
	@$(RUN_PY) tests/benchmarks/bench_masks.py $(ARGS)

.PHONY: gpu-check
gpu-check: ## what only a GPU can show: equal results, speed and memory against plain CLIP; without one a tiny CPU run
	@$(if $(wildcard $(RUN_PY)),$(RUN_PY),$(PYTHON)) tests/gpu/gpu_check.py $(ARGS)

.PHONY: bench-search
bench-search: install ## exact and approximate search of a million features: runs/bench/search.json [ARGS="--rows 100000"]
	@$(RUN_PY) -m tests.benchmarks.bench_search $(ARGS)

.PHONY: bench-export
bench-export: install ## exports against the model: difference, mAP, speed: runs/bench/export.json [RUN=...]
	@$(RUN_PY) -m tests.benchmarks.bench_export $(call option,RUN,run) $(ARGS)

.PHONY: bench-dg
bench-dg: install ## the method piece by piece on unseen data sets, three seeds; resumable [ARGS="--seeds 1"]
	@$(DGREID) bench-dg $(ARGS)

.PHONY: lock
lock: install ## write the versions in .venv to constraints.txt
	@$(VENV)/bin/pip freeze --exclude-editable | LC_ALL=C sort -f > constraints.txt.new && mv constraints.txt.new constraints.txt

.PHONY: clean
clean: ## remove .venv, .venv-vllm, .venv-exchange, .venv-track and caches (never data or runs)
	@rm -rf $(VENV) $(VENV_VLLM) $(VENV_EXCHANGE) $(VENV_TRACK) $(VENV_TRACK)-reid build *.egg-info .pytest_cache .mypy_cache .ruff_cache
