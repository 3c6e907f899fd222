# make train    sets up .venv and trains an MLP-Mixer on scikit-learn's digits (nothing to download but packages)
# make test     sets up .venv and runs the tests, without those that are slow by nature
# make test-all runs these too
# make smoke    trains on the digits and runs a short selection of the tests, as CI does on every Python that it finds
# make newest   does so with the newest releases of all dependencies in place of the locked ones, in an environment beside
# make oldest   and with the oldest ones that pyproject.toml allows
# make parity   compares the networks with Keras's and timm's; adds PyTorch and timm to .venv
# make aot      compiles the training steps for TPUs, none of which is needed; adds libtpu in a folder of its own
# make cluster  trains on a SLURM cluster of this machine's own, as root where slurm-wlm and munge are installed
# make lint     style and types

PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements.lock
RUN = $(VENV)/bin/python

.PHONY: setup train test test-all smoke newest oldest parity aot cluster lint clean

train: setup
	$(RUN) -m patchnets.main --config=configs/mixer_digits.py

WORKERS ?= auto
PYTEST = $(RUN) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST) $(SELECT)

smoke: train
	$(PYTEST) -m "not slow" $(SMOKE)
	$(RUN) -m pytest tests/test_kill.py -k killed_once

# What is used of libraries, models against published counts, a step against NumPy; then a run killed and continued.
SMOKE = tests/test_public_api.py tests/models/test_models.py tests/models/test_mlp_mixer.py tests/step/test_train_step.py

newest oldest:
	@mkdir -p build
	$(PYTHON) .ci/requirements.py $@ > build/requirements-$@.txt
	$(MAKE) smoke VENV=$(VENV)-$@ LOCK=build/requirements-$@.txt

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

$(VENV)/.installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("patchnets needs Python 3.11 or newer, and $(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $(LOCK)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest build *.egg-info
