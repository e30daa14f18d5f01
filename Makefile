# moescope: `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test bench gpu-check lint soak picture clean
.DEFAULT_GOAL := demo

# The stamp is the environment: made anew when what it is made from changes.
$(VENV)/.stamp: pyproject.toml setup.py constraints.txt $(wildcard collectors/native/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade-strategy only-if-needed -c constraints.txt "setuptools>=77" wheel
	$(BIN)/python -m pip install -q --no-build-isolation -c constraints.txt -e ".[model,dask,dev]"
	touch $@

.venv: $(VENV)/.stamp

demo: $(VENV)/.stamp
	$(BIN)/moescope demo

lint: $(VENV)/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What needs the machine for itself runs by itself. `pytest` alone runs all of it, one after another.
test: lint
	$(BIN)/python -m pytest -m 'alone and not soak and not gpu'
	$(BIN)/python -m pytest -m 'not alone and not soak and not gpu' -n 2 --dist loadfile

bench: $(VENV)/.stamp
	$(BIN)/python -m benchmarks

# Sets up nothing: a GPU machine has its own torch and Triton. Ends with 3 (make says "Error 3") where there is no GPU.
gpu-check:
	PYTHONPATH=src $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check

picture: $(VENV)/.stamp
	$(BIN)/python docs/picture.py

soak: $(VENV)/.stamp
	$(BIN)/python -m pytest -m soak

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
