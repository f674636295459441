# Needs Python 3.10 or newer with venv and headers, a C++20 compiler, make; the first run downloads torch.
PYTHON ?= python3
VENV ?= .venv
TORCH_VERSION ?= 2.13.0
# For pip: an index of your own, for instance.
PIP_FLAGS ?=
# For pytest.
PYTEST_FLAGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALLED := $(VENV)/.installed
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
CPP := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
# What decides how the package is built: a change of it builds again.
SETTINGS := torch=$(TORCH_VERSION) native=$(CW_NATIVE) cuda=$(CW_CUDA) architectures=$(TORCH_CUDA_ARCH_LIST)

.PHONY: help venv demo test slow lint format bench gpu force

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' Makefile

venv: $(INSTALLED) ## make .venv with torch, the tools and the package, editable

demo: $(INSTALLED) ## convert trained weights, downloaded with pip, and check what the networks compute
	$(BIN)/python examples/demo.py

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

slow: $(INSTALLED) ## run the tests that take long or much memory
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(INSTALLED) ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(INSTALLED) ## measure, then write the tables and the charts of README.md
	$(BIN)/python benchmarks/transfer.py
	$(BIN)/python benchmarks/update.py
	$(BIN)/python benchmarks/fill.py
	$(BIN)/python benchmarks/perturbed.py
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/chart.py

gpu: ## build in place for the card at hand with PYTHON's own torch; tests and benchmarks on it
	PYTHON=$(PYTHON) .ci/gpu

$(VENV)/.settings: force
	@mkdir -p $(VENV)
	@echo '$(SETTINGS)' | cmp -s - $@ || echo '$(SETTINGS)' > $@

# torch comes first, so that pip takes the build that the index or find-links prefers: one for the CPU where there is one.
$(VENV)/.tools: $(VENV)/.settings
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and f"PYTHON must be 3.10 or newer, got {v[0]}.{v[1]}")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(PIP_FLAGS) torch==$(TORCH_VERSION)
	$(PIP) install $(PIP_FLAGS) numpy ninja pybind11 'setuptools>=77' wheel
	@touch $@

# Libraries that these settings leave out must not stay behind from the build before. Compat: the clone stands on
# sys.path, so that a script beside a clone called convweights finds the package, and not the clone's own directory.
$(INSTALLED): $(VENV)/.tools $(SOURCES)
	rm -f convweights/_C*.so convweights/_cuda*.so
	$(PIP) install $(PIP_FLAGS) --no-build-isolation --config-settings editable_mode=compat -e '.[test,lint]'
	@touch $@
