# Every target creates its environment when it is missing: one per Python, so `make PYTHON=python3.12 test` keeps its own.
PYTHON ?= python3
ENV := .venv-$(notdir $(PYTHON))
RUN := $(ENV)/bin/python
OUT ?= results
SIZE ?= full

export OPENBLAS_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg

.PHONY: map test smoke test-slow torture figures bench check package docs docs-serve clean

map: $(ENV)/ready
	$(RUN) -m vgjax map --out $(OUT)

test: $(ENV)/ready
	$(RUN) -m pytest

# What another Python, and so another JAX and Flax, is seen by: core identities, architectures, theory, diagnoses, runs, README.
SMOKE := $(patsubst %,tests/test_%.py,flow exactness networks architectures theory_mean_field diagnosis \
	diagnosis_engine watching proposals house parts executors devices)

smoke: $(ENV)/ready
	OPTIMIZED=1 $(RUN) -m pytest $(wildcard $(SMOKE))

# As users have it, where most of `make test` is compiled for speed of compilation (tests/conftest.py).
test-slow: $(ENV)/ready
	OPTIMIZED=1 $(RUN) -m pytest -m slow

torture: $(ENV)/ready
	$(RUN) -m pytest -m torture --dist load

# Two scripts at a time: most of a script is compilation, which has one core.
figures: $(ENV)/ready
	printf '%s\n' $(filter-out figures/common.py,$(wildcard figures/*.py)) | SIZE=$(SIZE) xargs -P 2 -n 1 $(RUN)

bench: $(ENV)/ready
	for script in benchmarks/bench_*.py; do SIZE=$(SIZE) $(RUN) $$script || exit 1; done

check: $(ENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# Every page runs; a warning is an error. What ran already is kept for as long as neither the page nor the library changes.
docs: $(ENV)/docs
	$(RUN) -m sphinx --builder html --fail-on-warning --keep-going --jobs 2 docs docs/_build/html

docs-serve: docs
	$(RUN) -m http.server --directory docs/_build/html

# Built, looked into, installed into empty environments, used from outside the tree.
package: $(ENV)/ready
	$(RUN) .ci/package.py

$(ENV)/docs: $(ENV)/ready
	$(RUN) -m pip install --quiet --editable ".[docs]"
	touch $@

$(ENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(ENV)
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv-* results docs/_build .jax_cache .pytest_cache .mypy_cache .ruff_cache
