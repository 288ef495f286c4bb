PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2
DEMO = runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help install demo test test-all lint types docs check clean
.DEFAULT_GOAL := help

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed ## create the environment and install secateur into it

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

demo: install ## train, apply and compare on embedded images (minutes)
	$(BIN)/secateur train digits-weights --out $(DEMO)
	$(BIN)/secateur apply $(DEMO) --out $(DEMO)/applied
	$(BIN)/secateur compare $(DEMO) --out $(DEMO)/compare

test: install ## run the tests, on so many processes as WORKERS says
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --durations 20 -m "not slow"

test-all: install ## run the slow tests, too
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: install ## check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install ## check types
	$(BIN)/mypy

docs: install ## build the site, build/docs/index.html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going --quiet --builder html docs build/docs

check: lint types test ## everything that must pass

clean: ## remove the environment and caches, keep runs/
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build
