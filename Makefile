# make train     set up .venv and train an MLP-Mixer on scikit-learn's digits (downloads only packages)
# make test      set up .venv and run the quick tests
# make test-all  run all tests, including slow ones
# make smoke     train on the digits and run a short selection of the tests, as CI does on every Python
# make newest    make smoke with the newest releases of all dependencies, in a separate environment
# make oldest    make smoke with the oldest releases that pyproject.toml allows
# make parity    compare the networks with Keras's and timm's; adds PyTorch and timm to .venv
# make aot       compile the training steps for TPUs, without a TPU; adds libtpu in a separate folder
# make onnx      export every network as ONNX and run it in onnxruntime; adds jax2onnx in a separate folder
# make demo      test the page of patchnets.demo; adds Gradio in a separate folder
# make cluster   train on a SLURM cluster set up on this machine, as root with slurm-wlm and munge installed
# make lint      style and types

PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements.lock
RUN = $(VENV)/bin/python

# Python compiles a module when it is first imported; to compile all that is installed takes a third of the set-up.
PIP_FLAGS = --quiet --disable-pip-version-check --no-compile

# Else each of the many processes that tests start would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup train test test-all smoke newest oldest parity aot onnx demo cluster lint clean

train: setup
	$(RUN) -m patchnets.main --config=mixer_digits

WORKERS ?= auto
PYTEST = $(RUN) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST) $(SELECT)

smoke: train
	$(PYTEST) -m "not slow" $(SMOKE)
	$(RUN) -m pytest tests/test_kill.py -k killed_once

# Library interfaces in use, published parameter counts, a step against NumPy; then a killed and resumed run.
SMOKE = tests/test_public_api.py tests/models/test_models.py tests/models/test_mlp_mixer.py tests/step/test_train_step.py

newest oldest:
	@mkdir -p build
	$(PYTHON) .ci/requirements.py $@ > build/requirements-$@.txt
	$(MAKE) smoke VENV=$(VENV)-$@ LOCK=build/requirements-$@.txt

# --no-deps: the comparisons need neither timm's torchvision nor PyTorch's CUDA packages.
parity: setup
	$(VENV)/bin/pip install $(PIP_FLAGS) --no-deps --requirement requirements-parity.lock
	PATCHNETS_PARITY=required $(RUN) -m pytest tests/parity

cluster: setup
	$(RUN) -m pytest tests/cluster

# libtpu gets a separate folder: next to JAX it makes every program search for a TPU and report that there is none.
aot: setup $(VENV)/aot/.installed
	PATCHNETS_AOT=required PYTHONPATH=$(abspath $(VENV))/aot $(RUN) -m pytest -n 2 tests/aot

# A separate folder and --no-deps: jax2onnx pins an older orbax-checkpoint than ours, and never imports it.
# To export: PYTHONPATH=.venv/onnx .venv/bin/python -m patchnets.export MODEL --to=onnx
onnx: setup $(VENV)/onnx/.installed
	PATCHNETS_ONNX=required PYTHONPATH=$(abspath $(VENV))/onnx $(RUN) -m pytest tests/onnx_export

# Gradio gets a separate folder too, for its forty packages; patchnets runs without any of them.
demo: setup $(VENV)/demo/.installed
	PATCHNETS_DEMO=required PYTHONPATH=$(abspath $(VENV))/demo $(RUN) -m pytest tests/demo

# A separate folder within the environment, of packages without their dependencies.
$(VENV)/%/.installed: requirements-%.lock | setup
	rm -rf $(VENV)/$*
	$(VENV)/bin/pip install $(PIP_FLAGS) --no-deps --target $(VENV)/$* --requirement $<
	touch $@

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(VENV)/.installed

$(VENV)/.installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("patchnets needs Python 3.11 or newer, and $(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install $(PIP_FLAGS) --requirement $(LOCK)
	$(VENV)/bin/pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest build *.egg-info
