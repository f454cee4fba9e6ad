# Each target sets up what it needs: .venv, from uv.lock, inside the clone. `scripts/setup lock` locks anew.
.DEFAULT_GOAL := help
.PHONY: help setup figures test smoke quick record notebooks lint clean
MBAUG := .venv/bin/python -m mbaug
STUDY ?= hopper
# One thread in each process: two processes with two threads each can be many times slower than with one.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export MPLCONFIGDIR := $(CURDIR)/build/matplotlib

help:       ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | expand -t 12

setup:      ## make .venv (TORCH=cpu: without CUDA, where pip's index has it; EXTRAS="minari cluster peers"; PYTHON=...)
	@scripts/setup "$(TORCH)" $(EXTRAS)

figures: .venv/ready  ## draw all figures from the recorded runs into figures/ (minutes)
	@$(MBAUG) figures

test: .venv/ready  ## run all tests
	@.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

smoke: .venv/ready  ## run every notebook with tiny budgets, training included, into build/smoke (minutes)
	@$(MBAUG) figures --profile smoke

quick: .venv/ready  ## train Hopper from scratch, one seed, reduced budgets, into build/quick (up to 20 minutes)
	@$(MBAUG) figures --profile quick

record: .venv/ready  ## record what data/runs lacks of STUDY=hopper (hours; goes on where it was interrupted)
	@$(MBAUG) record $(STUDY)

notebooks: .venv/ready  ## execute the reading copies notebooks/*.ipynb anew from their sources
	@$(MBAUG) notebooks

lint: .venv/ready  ## check style
	@.venv/bin/python -m ruff check .

clean:      ## remove what was generated, but not .venv, what was recorded, checkpoints and datasets in build
	@find build -mindepth 1 -maxdepth 1 ! -name checkpoints ! -name offline -exec rm -rf {} + 2>/dev/null || true
	@rm -rf .pytest_cache .ruff_cache .hypothesis

.venv/ready: uv.lock pyproject.toml scripts/setup scripts/setup.py
	@scripts/setup "$(TORCH)" $(EXTRAS)
