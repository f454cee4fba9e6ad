# Each target sets up what it needs: .venv, from requirements.txt, inside the clone.
.DEFAULT_GOAL := help
.PHONY: help setup figures test test-fast fuzz smoke quick record notebooks site lint lock clean
PYTEST := .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
MBAUG := .venv/bin/python -m mbaug
# One thread in each process: two processes with two threads each can be many times slower than with one.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
# Another environment's, such as that of ROS, brings packages and pytest plugins that do not belong here.
unexport PYTHONPATH
export MPLCONFIGDIR := $(CURDIR)/build/matplotlib

help:       ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 12

setup:      ## make .venv (TORCH=cpu: without CUDA, where pip's index has it; PYTHON=... names a Python)
	@scripts/setup "$(TORCH)"

figures: .venv/ready  ## draw all figures from the recorded runs into figures/ (minutes)
	@$(MBAUG) figures

test: .venv/ready  ## run all tests
	@$(PYTEST)

test-fast: .venv/ready  ## run the tests that take no long training
	@$(PYTEST) -m "not slow"

fuzz: .venv/ready  ## try damaged files and random command lines, none of which may end but in a sentence (minutes)
	@.venv/bin/python tests/fuzz $(FUZZ)

smoke: .venv/ready  ## run every notebook with tiny budgets, training included, into build/smoke (minutes)
	@$(MBAUG) figures --profile smoke

quick: .venv/ready  ## train Hopper from scratch, one seed, reduced budgets, into build/quick (up to 20 minutes)
	@$(MBAUG) figures --profile quick

record: .venv/ready  ## record what data/runs lacks of the programme, or of STUDY=... (hours; goes on where it was interrupted)
	@$(MBAUG) record $(STUDY)

notebooks: .venv/ready  ## execute the reading copies notebooks/*.ipynb anew from their sources
	@$(MBAUG) notebooks

site: .venv/ready  ## build the site from the reading copies into build/site, without network
	@.venv/bin/python -m sphinx --quiet -W --keep-going -c docs -d build/doctrees . build/site
	@echo "open build/site/index.html"

lint: .venv/ready  ## check style and types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/basedpyright

lock: .venv/ready  ## write requirements.txt anew from pyproject.toml, with uv (UPGRADE=--upgrade: the newest versions)
	@command -v uv >/dev/null || .venv/bin/python -m pip install --quiet --no-cache-dir uv
	@PATH="$$PATH:.venv/bin" uv pip compile --quiet --cache-dir build/uv --custom-compile-command "make lock" $(UPGRADE) \
		--universal --python-version 3.11 --generate-hashes --only-binary :all: --all-extras --group test \
		--output-file requirements.txt pyproject.toml

clean:      ## remove what was generated, but not .venv, what was recorded, checkpoints and datasets in build
	@find build -mindepth 1 -maxdepth 1 ! -name checkpoints ! -name offline -exec rm -rf {} + 2>/dev/null || true
	@rm -rf .pytest_cache .ruff_cache .hypothesis

.venv/ready: requirements.txt pyproject.toml scripts/setup
	@scripts/setup "$(TORCH)"
