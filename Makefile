# Two commands do everything on a fresh machine with Python 3.11, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: demo test test-slow test-versions test-utility lock schemas lint types imports evidence evidence-foretell evidence-tables bench bench-quick bench-memory bench-large clean

# Exactly the versions that were tested: constraints.txt. A CPU build of torch satisfies it as well. What builds Pointsman
# comes first and the build is not isolated, because newer pips do not apply constraints to isolated builds.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

# Renews the lock files. Everybody else needs plain pip only.
lock:
	$(PYTHON) scripts/lock.py

# The JSON schema of every job's results, for whoever reads results.json; a test holds docs/schemas/ to the classes.
schemas: $(VENV)/.installed
	$(BIN)/python scripts/schemas.py

demo: $(VENV)/.installed
	now=$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/pointsman audit testbed --limit 12 --out runs/demo-audit-$$now && \
	$(BIN)/pointsman steer testbed --scenario multi_turn_defence --limit 60 --learn 200 --validate 60 \
		--random-draws 2 --out runs/demo-steer-$$now

test: lint types imports
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/.installed
	$(BIN)/pytest -m slow

# What depends on transformers, under the oldest supported, the locked and the newest of it, each in a venv of its own.
test-versions: $(VENV)/.installed
	$(BIN)/python scripts/versions.py

# Tasks of lm-eval (docs/utility.md), in a venv of their own: lm-eval brings 500 MB that nothing else needs.
test-utility:
	test -x .venv-utility/bin/python || $(PYTHON) -m venv .venv-utility
	.venv-utility/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,utility]'
	.venv-utility/bin/pytest tests/integrations

lint: $(VENV)/.installed
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/ruff format --check src tests scripts benchmarks

types: $(VENV)/.installed
	$(BIN)/mypy

imports: $(VENV)/.installed
	$(BIN)/lint-imports
	$(BIN)/python scripts/circles.py

# The measurements of the README and of docs/, all runs of evidence/plan.yaml: at most five hours on two cores. May be
# killed and begun again; `make evidence ONLY="olmoe n100-olmoe"` does some of it, `make evidence-foretell` says how long.
evidence: $(VENV)/.installed
	$(BIN)/python scripts/evidence.py $(if $(ONLY),--only $(ONLY))

evidence-foretell: $(VENV)/.installed
	$(BIN)/python scripts/evidence.py --foretell

evidence-tables: $(VENV)/.installed
	$(BIN)/python scripts/tables.py

# What must be fast, all ratios in one run, one thread each side: about 40 minutes, best on an idle machine.
bench: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/run.py --readme benchmarks/README.md benchmarks/results*.json

# The same at tiny numbers, about a minute: shows that it runs, writes nothing.
bench-quick: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py --quick

# Traces of 10,000 contexts of a model of 48 layers with 128 experts, written and learnt from: peak memory. Ten minutes.
bench-memory: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/trace_memory.py

# One guided route on a random OLMoE-1B-7B in bfloat16: needs 16 GiB of memory, or half with LAYERS=8. Ten minutes.
bench-large: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/large_model.py --layers $(or $(LAYERS),16)

clean:
	rm -rf $(VENV) .venv-lock .venv-versions .venv-utility build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
