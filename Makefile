# Two commands on a machine with Python 3.10+ and make: `make demo` and `make test`.
# Each makes its own virtual environment and installs the tested versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A file at a time: what its tests share is made once, and there is one browser.
# A thread pool per test process would fight over the cores.
TEST_ENV := OMP_NUM_THREADS=1

.PHONY: demo test slow lint docs wheel matrix clean gpu-check browser
demo: $(VENV)/installed
	$(BIN)/edgeuda demo --out demo --resume

test: lint docs
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow and not gpu'

# Every network, every plan, every TensorRT: as much again. Continuous integration runs both.
slow: $(VENV)/installed
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist loadfile -m 'slow and not gpu'

# The report's tests in a browser skip where there is none.
browser:
	command -v chromium || command -v google-chrome || \
		{ apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } || \
		echo "No Chromium: the tests of the report in a browser will be skipped"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A broken link or docstring is an error; the site lies in build/site.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Before a release this is what is installed: pip install --find-links dist 'edgeuda[cpu]'
wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# The fast tests with every Python that the machine has, each in an environment of its own.
matrix:
	@found=; for version in 3.10 3.11 3.12 3.13; do \
		command -v python$$version >/dev/null || { echo "python$$version: not here"; continue; }; \
		found=1; echo "python$$version:"; \
		$(MAKE) --no-print-directory test PYTHON=python$$version VENV=.venv-$$version || exit 1; \
	done; [ "$$found" ] || { echo "no Python from 3.10 to 3.13 was found"; exit 1; }

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[train,quantize,cpu,lite0,dev]'
	touch $@

# Installs nothing: runs what the machine has, with the Python in front of it. What is not there and
# not wanted: make gpu-check SKIP="--skip pycuda --skip 'tensorrt_rtx*'".
MODEL ?= adapted.onnx
FOOTAGE ?= frames
GPU_OUT ?= gpu-check.json
gpu-check:
	PYTHONPATH=. $(PYTHON) -c "from cli import main; main()" gpu-check \
		--model $(MODEL) --target $(FOOTAGE) --out $(GPU_OUT) $(SKIP)

clean:
	rm -rf $(VENV) demo
