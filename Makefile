# Two commands matter: `make demo` (the whole chain, small) and `make test`.
# Both make their own virtual environment; they need Python 3.10+ and a C++ compiler.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that share the tests, by files; 0 runs them in this one.
WORKERS ?= 2
OUT ?= out/demo
NUM ?= 4000
KIMG ?= 1.2

.PHONY: demo test check format doctor clean

$(VENV)/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade pip
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -r requirements-dev.txt
	touch $@

demo: $(VENV)/installed
	PATH="$(abspath $(BIN)):$$PATH" bash tools/demo.sh "$(OUT)" "$(NUM)" "$(KIMG)"

test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(VENV)/installed
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

format: $(VENV)/installed
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

doctor: $(VENV)/installed
	$(BIN)/python doctor.py

clean:
	rm -rf out build .pytest_cache .mypy_cache .ruff_cache
