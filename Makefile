# `make figures` and `make test` do all the set-up on a fresh machine; every target calls `install`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FILES := deis_analysis experiments docs tests

.PHONY: figures reproduce docs test lint bench field-history tuned-samplers fuzz soak mutants install format clean

figures: install  ## compute every figure, offline, on embedded data; files that agree with what is computed stay as they are
	$(BIN)/python -m experiments reproduce

reproduce: install  ## the same as a check: nothing is overwritten, and what differs fails
	$(BIN)/python -m experiments reproduce --strict

test: install  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --durations=10 -q

lint: install  ## format, lint and types
	$(BIN)/ruff format --check $(FILES)
	$(BIN)/ruff check $(FILES)
	$(BIN)/mypy

docs: install  ## the site, into build/site, offline; a broken link fails
	$(BIN)/python -m docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: install  ## ratios, measured side by side in one run
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench.py

fuzz: install  ## 60,000 hostile calls of the public functions, half an hour
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py

soak: install  ## memory of long processes; runs that are killed, or share a folder; ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py

mutants: install  ## 60 errors planted at random in a copy of the package, one at a time: which test sees each; hours
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py

field-history: install  ## audit the released versions of diffusers anew: installs each, half an hour
	$(BIN)/python -m experiments.study.field_history install $(VENV)/history
	DEIS_ANALYSIS_HISTORY=$(VENV)/history $(BIN)/python -m experiments run field_history --force --jobs 1

tuned-samplers: install  ## tune samplers for the shipped networks anew: an hour
	DEIS_ANALYSIS_TUNE=1 $(BIN)/python -m experiments run tuned_samplers --force --jobs 1

format: install
	$(BIN)/ruff format $(FILES)
	$(BIN)/ruff check --fix $(FILES)

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, found %s; set PYTHON=python3.x" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --quiet --constraint constraints.txt --editable '.[dev,docs,peers]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --quiet --constraint constraints.txt --no-deps azula k-diffusion
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # what pip would do on one core; a few files are for other Pythons
	touch $(STAMP)

clean:
	rm -rf $(VENV) build figures/.done figures/.quick figures/.thorough figures/.undrawn figures/.differs figures/.cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
