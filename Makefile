# make train    sets up .venv and trains an MLP-Mixer on scikit-learn's digits (nothing to download but packages)
# make test     sets up .venv and runs the tests, without those that are slow by nature
# make test-all runs these too
# make parity   compares the networks with Keras's and timm's; adds PyTorch and timm to .venv
# make aot      compiles the training steps for TPUs, none of which is needed; adds libtpu in a folder of its own
# make cluster  trains on a SLURM cluster of this machine's own, as root where slurm-wlm and munge are installed
# make lint     style and types

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: setup train test test-all parity aot cluster lint clean

train: setup
	$(RUN) -m patchnets.main --config=configs/mixer_digits.py

PYTEST = $(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

# Without their dependencies: timm needs torchvision for nothing that is compared, and PyTorch nothing of CUDA's.
parity: setup
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-parity.lock
	PATCHNETS_PARITY=required $(RUN) -m pytest tests/parity

cluster: setup
	$(RUN) -m pytest tests/cluster

# In a folder of its own: beside JAX, libtpu has every program look for a TPU, and say on the terminal that there is none.
aot: setup $(VENV)/aot/.installed
	PATCHNETS_AOT=required PYTHONPATH=$(abspath $(VENV))/aot $(RUN) -m pytest -n 2 tests/aot

$(VENV)/aot/.installed: requirements-tpu.lock | setup
	rm -rf $(VENV)/aot
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/aot --requirement $<
	touch $@

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("patchnets needs Python 3.11 or newer, and $(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
