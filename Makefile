# The first target that is made creates .venv and installs the packages in it; later ones find it ready.
# Another interpreter: make PYTHON=python3.12 ...    Some tests only: make test ARGS="tests/core -k lifting"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PACKAGES := $(addprefix packages/wavelet-,core memory quant train baselines ecosystem cli)
KERNEL := packages/wavelet-quant/hatch_build.py $(wildcard packages/wavelet-quant/src/wavelet_quant/native/*.cpp packages/wavelet-quant/src/wavelet_quant/native/*.h)

WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format bench release clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## train a small model on Python's standard library, then let it write
	$(BIN)/wavelet train demo --out runs/demo --overwrite
	$(BIN)/wavelet generate runs/demo "    def __init__(self" --num-tokens 200 --temperature 0.7 --top-p 0.9 --seed 1
	@echo 'Now "source $(BIN)/activate", and go on with the wavelet command.'

# A file's tests stay on one worker, so that what its fixtures build or train is made once.
test: $(INSTALLED) ## run the tests, the slow ones excepted (ARGS="-m slow" for those)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(INSTALLED) ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## fix what ruff can fix, and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED) ## run the scripts in benchmarks/
	@for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

release: $(INSTALLED) ## build every wheel and sdist into dist/ and check them; publishes nothing
	$(BIN)/python -m pip install --quiet --group release -c constraints.txt
	$(BIN)/python scripts/release.py

clean: ## remove .venv, caches and built files; runs/ stays
	rm -rf $(VENV) build dist packages/*/build packages/*/dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find packages tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Editable builds use the hatchling installed here, not one downloaded into a build environment per package.
$(INSTALLED): pyproject.toml constraints.txt $(PACKAGES:%=%/pyproject.toml) $(KERNEL)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "WaveletLM needs Python 3.10 or newer, and '$(PYTHON)' is not one. Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing WaveletLM and its tools in $(VENV); this is done once and takes a few minutes."
	@$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet --group dev -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt $(PACKAGES:%=-e %) -e "packages/wavelet-train[sentencepiece,plot,sweep,tensorboard]" -e "packages/wavelet-quant[triton]" -e "packages/wavelet-ecosystem[transformers,lm-eval]" -e "packages/wavelet-cli[onnx]" onnxruntime
	@touch $@
