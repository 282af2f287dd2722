# Every day: `make serve`, `make quick`, `make test`, `make check`. Each installs what it needs first; a bare clone needs
# git, make and Python 3.11 or newer.
# pip finds packages where the machine's own configuration (PIP_*, pip.conf) says; nothing here names an index.

PYTHON ?= python3
PORT ?= 8000
EXTRAS ?= cpu,training,dev
IMAGE ?= robustclip

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup serve quick test check format results results-check pins wheel image clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install the pinned dependencies

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "robustclip needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) can't make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV): the first time takes minutes, most of them torch"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

serve: $(STAMP)  ## serve on 127.0.0.1:8000 (PORT=9000 for another port)
	$(BIN)/robustclip serve --port $(PORT)

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -q

quick: $(STAMP)  ## run the fast tests, which need no data
	$(BIN)/python -m pytest -q -m "not slow and not data and not image and not gpu"

check: $(STAMP)  ## lint, format, types, import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(STAMP)  ## put the sources in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: $(STAMP)  ## write training/RESULTS.md from the JSON files beside it
	$(BIN)/python -m training.measuring.pages.results

results-check: $(STAMP)  ## compare training/RESULTS.md with the JSON files
	$(BIN)/python -m training.measuring.pages.results --check

pins: $(STAMP)  ## rewrite constraints.txt from what .venv holds
	@# onnxruntime-gpu can't live beside onnxruntime: its pin is carried over. A build's suffix (+cpu) is dropped: any build of the version will do.
	@sed -n '/^#/p; /^onnxruntime-gpu==/p' constraints.txt > constraints.new
	@$(BIN)/python -m pip list --format=freeze --exclude-editable | sed 's/+.*//' | grep -vE '^(pip|setuptools|triton|nvidia-.*|cuda-.*)==' >> constraints.new
	@mv constraints.new constraints.txt

wheel: $(STAMP)  ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

image: ## build the service's container image (IMAGE=name)
	docker build --target service --tag $(IMAGE) .

clean:  ## remove .venv and what was built
	rm -rf $(VENV) dist build
