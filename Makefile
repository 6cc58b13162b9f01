# make demo   install everything and run the whole pipeline on a synthetic island
# make test   the tests (minutes); make test-slow: also the long ones
# make bench  a benchmark beside other software: make bench NAME=splits
# make check  lint, format, types; make fix: correct what can be corrected automatically

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# uv where it is there, which takes a fraction of the time; else pip. Both install the versions of constraints.txt
ifneq ($(shell command -v uv),)
MAKE_VENV   = uv venv --quiet --allow-existing --seed --python $(PYTHON) $(VENV)
PIP_INSTALL = uv pip install --python $(BIN)/python
else
MAKE_VENV   = $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt pip
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on
endif

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-slow accept-step-changes bench screenshots docs docs-reference check fix lock images clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 22

install: $(STAMP)  ## make .venv with the exact versions of constraints.txt (5.5 GB, a few minutes the first time)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about 5.5 GB (torch's ordinary CUDA build), a few minutes the first time."
	$(MAKE_VENV)
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	$(PIP_INSTALL) --no-deps --constraint constraints.txt megadetector
	@touch $(STAMP)

demo: install  ## run the whole pipeline on a synthetic island, on this machine
	$(BIN)/animl-pipeline demo

serve: install  ## run Prefect's server, all deployments and a worker on this machine, until Ctrl-C
	$(BIN)/animl-pipeline up

test: install  ## run the tests in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: install  ## run all tests, also those that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow or not slow'

accept-step-changes: install  ## accept changes in the code of steps; first raise the version of each step that now makes something else
	$(BIN)/python -m tests.project.step_digests --accept

BENCHES = $(sort $(filter-out measure s3_server,$(basename $(notdir $(wildcard benchmarks/*.py)))))

bench: install  ## run a benchmark beside other software: make bench NAME=splits (names: benchmarks/)
	@test -f benchmarks/$(NAME).py || { echo "expected NAME=… of: $(BENCHES)"; exit 2; }
	$(BIN)/python benchmarks/$(NAME).py

screenshots: install  ## take the screenshots in docs/screenshots again (needs Chromium and axe-core, CONTRIBUTING.md; minutes)
	SCREENSHOTS=docs/screenshots $(BIN)/python -m pytest -m slow tests/flows/test_browser.py tests/reports_server

docs: install  ## build the pages of docs/ as a site in runs/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

docs-reference: install  ## write the reference pages in docs/ from the code: tables, keys of a plan, commands, environment variables
	$(BIN)/python -m tests.project.data_contracts --write
	$(BIN)/python -m tests.project.reference --write

check: install  ## check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: install  ## correct lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install  ## write constraints.txt from the installed packages (names and versions only)
	$(BIN)/python -m pip list --format=freeze --exclude animl-pipeline | grep -v ' @ ' | LC_ALL=C sort --ignore-case > constraints.txt

# docker, or buildah if no Docker engine runs; IMAGE_FLAGS are passed to it, such as --build-arg BASE=… or --secret id=pip,src=…
BUILD = $(shell docker info >/dev/null 2>&1 && echo docker build || echo buildah build --layers)
IMAGES ?= endpoint pipeline

images:  ## build both container images, animl-endpoint and animl-pipeline; one of them: make images IMAGES=endpoint
	for image in $(IMAGES); do $(BUILD) $(IMAGE_FLAGS) -f docker/$$image.Dockerfile -t animl-$$image . || exit 1; done

clean:  ## remove what the demo, the docs and the tests made (the environment, runs/store and all other folders in runs stay)
	rm -rf runs/demo runs/site .pytest_cache .mypy_cache .ruff_cache
