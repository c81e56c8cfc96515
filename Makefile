# `make serve` and `make test` do all their own set-up, in .venv; see README.md.

VENV := .venv
BIN := $(VENV)/bin
BIND := 127.0.0.1:8000
unexport PYTHONDONTWRITEBYTECODE # or each of the hundreds of processes that the tests start would compile all of it anew
APT_TESTS := chromium fonts-liberation nginx-light faketime iproute2
APT_BENCH := nginx libnginx-mod-nchan golang-go

.DEFAULT_GOAL := help
.PHONY: help serve test cover prove lint format bench bench-quick clean

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 13

serve: $(VENV)/installed ## the hub and the board on http://127.0.0.1:8000 (BIND=host:port for another)
	@$(BIN)/trio-sse serve --bind $(BIND)

test: $(VENV)/installed-dev ## all tests, those in a browser too
	@.ci/packages $(APT_TESTS)
	@$(BIN)/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder

cover: $(VENV)/installed-dev ## the same, and what of the code was run by it: it takes twice as long
	@.ci/packages $(APT_TESTS)
	@rm -f .coverage.*
	@$(BIN)/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder --cov --cov-report=term

prove: $(VENV)/installed-dev ## the long proofs: what is promised, at full size
	@.ci/packages $(APT_TESTS)
	@$(BIN)/python -m pytest -n 3 --dist loadscope -m proof

lint: $(VENV)/installed-dev ## style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/installed-dev ## rewrite in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/installed-dev ## fan-out on this hub and on its peers, half an hour; results and plot are kept
	@.ci/packages $(APT_BENCH)
	@$(BIN)/python benchmarks/fanout.py --json benchmarks/results.json --plot docs/benchmark.svg

bench-quick: $(VENV)/installed-dev ## the same in two minutes: one load and the limit of each
	@.ci/packages $(APT_BENCH)
	@$(BIN)/python benchmarks/fanout.py --quick

clean: ## remove what make made
	rm -rf $(VENV) build dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/installed: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing trio_sse into $(VENV) ..."
	@$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing trio_sse and what its tests need into $(VENV) ..."
	@$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/bin/pip:
	@.ci/venv $(VENV)
