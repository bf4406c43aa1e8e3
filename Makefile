# Two commands on a fresh machine: make env, make quickstart. PY=python3.11 chooses the interpreter.
PY ?= python3
VENV ?= .venv
PORT ?= 5000

BIN := $(VENV)/bin
RUN := outputs/quickstart
DATABASE := outputs/mlflow/mlflow.db
CHAIN := teacher_frames_tiny mae_tiny stage1_tiny
SMOKE := stage2_tiny stage2_audio_tiny $(CHAIN) stage2_from_stage1_tiny distill_tiny clip_tiny
# The environment is current when it was built from exactly these two files.
STAMP := $(VENV)/.built-from-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)

# Tiny tensors gain nothing from many threads, and never from more than there are cores.
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
export OMP_NUM_THREADS ?= $(shell [ $(CORES) -lt 4 ] && echo $(CORES) || echo 4)
JOBS ?= $(shell [ $(CORES) -lt 8 ] && echo $(CORES) || echo 8)
export MLFLOW_DISABLE_TELEMETRY = true

.DEFAULT_GOAL := help
.PHONY: help env quickstart chain test lint smoke golden dashboard

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1#\2/p' $(MAKEFILE_LIST) | awk -F '#' '{printf "make %-12s %s\n", $$1, $$2}'

env: $(STAMP)  ## build .venv from pyproject.toml and constraints.txt; nothing to do when it is current

$(STAMP):
	@$(PY) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info < (3, 14) else "$(PY) is Python %d.%d; 3.10 to 3.13 will do: make env PY=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev]' -c constraints.txt
	@rm -f $(VENV)/.built-from-*
	@touch $@

quickstart: env  ## train and evaluate a small model on a CPU in minutes, print its scores
	$(BIN)/python train.py experiment=quickstart
	@$(BIN)/python -m ivt2.cli.report run_dir=$(RUN)
	@echo "curves and figures: make dashboard"

chain: env  ## stage 1 from nothing on a CPU: train two tiny teachers, then their student, print what it learned
	for name in $(CHAIN); do $(BIN)/python train.py experiment=$$name || exit; done
	@$(BIN)/python -m ivt2.cli.report run_dir=outputs/stage1_tiny

# A file of tests stays together, for its fixtures' sake; each process has a core, hence one thread.
test: env lint  ## lint, and every test that needs no GPU, side by side (JOBS=1: one after another)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" --numprocesses=$(JOBS) --dist=loadfile

lint: env  ## ruff, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

smoke: env  ## every tiny experiment through train.py for a few steps, each after the teachers that it learns from
	for name in $(SMOKE); do \
		$(BIN)/python train.py experiment=$$name debug=smoke paths.output_dir=outputs/smoke || exit; done

golden: env  ## recorded cases of the reference: passed, failed, or unknown to this package (IVT2_GOLDEN_DIR=folder)
	$(BIN)/python -m pytest tests/golden -rpsfE

dashboard: env  ## MLflow at http://127.0.0.1:5000 (PORT=5001 for another)
	@mkdir -p $(dir $(DATABASE))
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///$(DATABASE) \
		--host 127.0.0.1 --port $(PORT) --workers 1
