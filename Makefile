# Everything a newcomer types. Each target installs what it needs; `make setup` and `make run` need nothing but python3,
# python3-venv, git and make to be there.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup run test check bench bench-fleet fleet fuzz soak clean distclean setup-test
BIN := .venv/bin
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## install packages, .venv with the castoff command, and a guest kernel
	@packaging/setup run

setup-test:
	@packaging/setup run test

run: setup ## make a sample image and run it twice, cold and warm
	@packaging/run-sample

test: setup-test check ## every check and every test
	$(BIN)/pytest $(PYTEST)

check: setup-test ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

bench: setup-test ## measure against containerd, mke2fs, umoci and tar (25 minutes; QUICK=1: 4, without lazy boots)
	$(BIN)/python -m bench $(if $(QUICK),--quick)

fleet: setup-test ## boot a cold image on three hosts in network namespaces, and print who sent what to whom (root)
	@packaging/run-fleet

bench-fleet: setup-test ## measure a region of 8 hosts in network namespaces, and where it makes machines: docs/bench/fleet (7 minutes, root)
	$(BIN)/python -m bench --only region,placement --results docs/bench/fleet

fuzz: setup-test ## property tests with fresh random input for 10 minutes (FUZZ_SECONDS)
	@packaging/fuzz $(or $(FUZZ_SECONDS),600)

soak: setup-test ## 200 lazy boots with faults, 4,000 machines of an agent, 50 kills of every process (over an hour; SOAK_BOOTS, SOAK_KILLS)
	@packaging/soak $(or $(SOAK_BOOTS),200) $(or $(SOAK_KILLS),50)

clean: ## remove what runs and builds left behind (not .venv, not the cached images)
	@packaging/unmount .state
	rm -rf .state build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests bench packaging -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv and the cached images too
	rm -rf .venv .cache
