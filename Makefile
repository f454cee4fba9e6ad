# Each target first makes .venv inside the clone, from requirements.txt, if it is missing or out of date.
.DEFAULT_GOAL := help
.PHONY: help setup figures test test-fast fuzz smoke quick record notebooks site lint lock clean
PYTEST := .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
MBAUG := .venv/bin/python -m mbaug
# One thread per process: on two cores, two processes with two threads each can be many times slower.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
# PYTHONPATH may name another environment, such as ROS, whose packages and pytest plugins must stay out.
unexport PYTHONPATH
export MPLCONFIGDIR := $(CURDIR)/build/matplotlib

help:       ## list these targets
	@awk -F ':[^#]*## ' '/^[a-z-]*:[^#]*## / {printf "%-12s%s\n", $$1, $$2}' Makefile

setup:      ## make .venv (TORCH=cpu: torch without CUDA, if pip's index has it; PYTHON=...: the Python to use)
	@scripts/setup "$(TORCH)"

figures: .venv/ready  ## draw all figures from the recorded runs into figures/ (minutes)
	@$(MBAUG) figures

test: .venv/ready  ## run all tests
	@$(PYTEST)

test-fast: .venv/ready  ## run the fast tests, which take at most about two seconds each
	@$(PYTEST) -m "not slow"

fuzz: .venv/ready  ## try damaged files and random command lines; each must work or fail with one sentence (minutes)
	@.venv/bin/python tests/fuzz $(FUZZ)

smoke: .venv/ready  ## run every notebook with tiny budgets, training included, into build/smoke (minutes)
	@$(MBAUG) figures --profile smoke

quick: .venv/ready  ## train Hopper's main arms, one seed, with reduced budgets, into build/quick (up to 20 minutes)
	@$(MBAUG) figures --profile quick

record: .venv/ready  ## train and record the missing runs of the programme, or of STUDY=... (hours; resumes if interrupted)
	@$(MBAUG) record $(STUDY)

notebooks: .venv/ready  ## execute the notebooks (.py) and write their reading copies (.ipynb)
	@$(MBAUG) notebooks

site: .venv/ready  ## build the site into build/site; needs no network
	@.venv/bin/python -m sphinx --quiet -W --keep-going -c docs -d build/doctrees . build/site
	@echo "open build/site/index.html"

lint: .venv/ready  ## check style and types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/basedpyright

lock: .venv/ready  ## lock the packages of pyproject.toml in requirements.txt, with uv (UPGRADE=--upgrade: newest versions)
	@command -v uv >/dev/null || .venv/bin/python -m pip install --quiet --no-cache-dir uv
	@PATH="$$PATH:.venv/bin" uv pip compile --quiet --cache-dir build/uv --custom-compile-command "make lock" $(UPGRADE) \
		--universal --python-version 3.11 --generate-hashes --only-binary :all: --all-extras --group test \
		--output-file requirements.txt pyproject.toml

clean:      ## remove generated files, except .venv, recorded runs, and the checkpoints and datasets in build
	@find build -mindepth 1 -maxdepth 1 ! -name checkpoints ! -name offline ! -name minari -exec rm -rf {} + 2>/dev/null || true
	@rm -rf .pytest_cache .ruff_cache .hypothesis

.venv/ready: requirements.txt pyproject.toml scripts/setup
	@scripts/setup "$(TORCH)"
