# One command per chore, the same here and in CI. PYTHON=python3.11 picks the interpreter, EXTRA=gpu faiss on the GPU.
PYTHON ?= python3
VENV ?= .venv
EXTRA ?= $(shell cat $(VENV)/.extra 2>/dev/null || echo cpu)
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRA)
# torch and faiss each start as many threads as there are cores; the tests run two at a time
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-gpu test-web test-hear test-s3 chaos lint types format bench bench-scale seeds table2 table3 ready docs wheel clean

# of make table2, table3
RUNS ?= $(if $(filter table3,$(MAKECMDGOALS)),runs/table3,runs/eval)

help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make .venv and install decar with everything its tests need
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "decar needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	# faiss-cpu and faiss-gpu install one module over the other
	$(BIN)/python -m pip uninstall --yes --quiet faiss-cpu faiss-gpu 2>/dev/null
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[$(EXTRA),dev]'
	@rm -f $(VENV)/.ready-* && echo $(EXTRA) > $(VENV)/.extra && touch $@

demo: $(READY) ## pre-train on the bundled sounds, judge the encoder on eight tasks, print the table (minutes)
	PATH="$(abspath $(BIN)):$$PATH" bash benchmarks/demo.sh

test: $(READY) ## the tests
	$(ONE_THREAD) $(BIN)/python -m pytest

test-slow: $(READY) ## the tests that take longer: every reader with thousands of odd inputs
	$(ONE_THREAD) $(BIN)/python -m pytest -m slow tests

test-gpu: $(READY) ## the tests that need a CUDA device; skipped by name where there is none
	$(BIN)/python -m pytest -m gpu -n 0 tests/gpu

test-web: $(READY) ## the tests of report.html in Chromium, which is installed by apt where it is missing
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  command -v apt-get >/dev/null || { echo "test-web needs Chromium on the path, and apt-get is not here to install it"; exit 1; }; \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); $$SUDO apt-get update -q && $$SUDO apt-get install -y -q --no-install-recommends chromium; }
	$(ONE_THREAD) $(BIN)/python -m pytest -m web -n 0 tests/report

test-s3: $(READY) ## decar embed from and to object storage: s3fs and moto's S3 server, which is stopped on the way
	# not in $(VENV): botocore wants an older python-dateutil than constraints.txt has
	test -d build/s3 || $(BIN)/python -m pip install --quiet --target build/s3 's3fs==2026.9.0' 'moto[s3]==5.2.5' flask flask-cors
	PYTHONPATH=build/s3 $(ONE_THREAD) $(BIN)/python -m pytest -m s3 -n 0 tests/cli/test_s3.py

chaos: $(READY) ## damage files and processes of small runs at random, go on, compare with undamaged runs (30 minutes)
	$(BIN)/python benchmarks/chaos.py --out benchmarks/chaos.md

test-hear: $(READY) ## decar.hear by the validator of HEAR 2021
	# without what it depends on: it wants tensorflow, of which the test has a stand-in
	$(BIN)/python -m pip install --quiet --no-deps hearvalidator==2021.0.2
	$(BIN)/python -m pytest -n 0 tests/test_hear.py

lint: $(READY) ## style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY) ## strict type check
	$(BIN)/mypy

format: $(READY) ## rewrite the code in the house style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(READY) ## how fast it is, into benchmarks/RESULTS.md; leave the machine alone meanwhile (under 20 minutes)
	$(BIN)/python benchmarks/bench.py $(if $(ONLY),--only $(ONLY))

bench-scale: $(READY) ## the same at two million clips, into benchmarks/scale.json (half an hour, 5 GB of disk)
	$(BIN)/python benchmarks/scale.py --out benchmarks/scale.json --sizes 2000000 --arms kmeans pic

seeds: $(READY) ## what the default reaches, three seeds, under both protocols (long)
	$(BIN)/python benchmarks/demo_seeds.py

table2: $(READY) ## what was judged, beside the paper's Table 2; RUNS=runs/eval
	$(BIN)/decar table2 $(RUNS)

table3: $(READY) ## the same by clusterer and k, beside the paper's Table 3; RUNS=runs/table3
	$(BIN)/decar table3 $(RUNS)

ready: $(READY) ## the encoder that comes with decar: train, round, judge, fill its card; ROOT=DIR with index.csv and tasks/
	$(BIN)/python benchmarks/ready.py --root $(ROOT)

docs: $(READY) ## the pages, with the API from the docstrings, into site/
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRA),docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

wheel: ## build dist/*.whl and run it in an empty folder (minutes: it gets an environment of its own)
	PYTHON=$(PYTHON) bash benchmarks/try_wheel.sh

clean: ## forget the environment and the caches of the tools, keep runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site
