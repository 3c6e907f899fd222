"""The configuration ends at experiment.py: which functions have a ConfigDict in their signature, and how many."""

import ast
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patchnets.augment.preprocess import normalization
from patchnets.config import default_config
from patchnets.data import DataOptions, load_dataset
from patchnets.errors import UserError
from patchnets.experiment import build_experiment
from patchnets.models import create_model
from patchnets.optim.optimizers import make_optimizer, weight_decay_mults
from patchnets.optim.schedules import make_schedule
from patchnets.parallel.mesh import make_mesh
from patchnets.run.checkpoints import Checkpoints
from patchnets.run.workdir import Workdir
from patchnets.step.train_state import abstract_params

PACKAGE = pathlib.Path(__file__).parents[1] / "patchnets"
ALLOWED = ("experiment.py", "train.py", "config/", "run/console.py", "estimate/")
RECIPES = PACKAGE / "config" / "common.py"  # what the files in configs/ share: they make configurations
LARGEST = 12


def signatures_with_a_config() -> list[str]:
    """["file:function", ...] of every function, methods and nested ones included, one of whose annotations, of an
    argument or of what it returns, names ConfigDict; in whichever way it is written, as text too."""
    actual = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file == RECIPES:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                arguments += [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
                annotations = [argument.annotation for argument in arguments] + [node.returns]
                if any("ConfigDict" in ast.unparse(annotation) for annotation in annotations if annotation):
                    actual.append(f"{file.relative_to(PACKAGE).as_posix()}:{node.name}")
    return actual


def test_few_functions_take_a_configuration_and_they_are_at_the_top():
    actual = signatures_with_a_config()
    assert 0 < len(actual) <= LARGEST, actual
    assert [name for name in actual if not name.startswith(ALLOWED)] == []
    assert [name for name in actual if name.startswith("train.py")] == ["train.py:train"]


def test_no_argument_called_config_goes_without_saying_what_it_is():
    """Else a signature could hide what this file counts."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                    assert argument.arg != "config" or argument.annotation, f"{file}:{node.name}"


def test_the_parts_of_a_run_are_made_without_a_configuration(tmp_path):
    mesh = make_mesh(data=1)
    data = load_dataset(DataOptions("digits", train_split="train[:40]", image_size=8, batch_size=8), mesh)
    model = create_model(
        "mlp_mixer", num_classes=10, patch_size=4, depth=1, hidden_dim=4, tokens_mlp_dim=4, channels_mlp_dim=4
    )
    params = abstract_params(model, 8, data.channels)
    schedule = make_schedule("linear", learning_rate=0.5, total_steps=10, warmup_steps=2)
    assert [float(schedule(step)) for step in (1, 2, 6)] == [0.25, 0.5, 0.25]
    optimizer = make_optimizer(
        "sgd", learning_rate=schedule, params=params, momentum=0.0, lr_mults=(("head/.*", 2.0), (".*", 1.0))
    )
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    state = optimizer.init(ones)
    _, state = optimizer.update(ones, state, ones)  # at a rate of 0
    updates, _ = optimizer.update(ones, state, ones)
    assert float(updates["head"]["bias"][0]) == -0.5 and float(updates["stem"]["bias"][0]) == -0.25
    assert data.steps_per_epoch == 5 and data.num_classes == 10 and mesh.size == 1
    workdir = Workdir(tmp_path / "run", {"optimizer.name": "sgd", "seed": 3})
    workdir.acquire(data.fingerprint)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"optimizer": {"name": "sgd"}, "seed": 3}
    checkpoints = Checkpoints(workdir.checkpoints, max_to_keep=1, best_metric="loss")
    assert checkpoints.latest_step() is None
    checkpoints.close()


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: make_schedule("cosin", learning_rate=0.1, total_steps=10),
            "schedule.name=cosin is unknown; use one of",
        ),
        (
            lambda: weight_decay_mults({"kernel": 1.0}, wd_mask="kernel"),
            "wd_mask=kernel is unknown; use kernels or all",
        ),
        (lambda: normalization("imgnet", np.zeros((1, 2, 2, 3), np.uint8)), "normalize=imgnet is unknown; use"),
        (lambda: make_mesh(data=0), "mesh.data=0 is no number of devices; use at least 1"),
        (lambda: make_mesh(fsdp=-2), "mesh.fsdp=-2 is no number of devices"),
        (lambda: DataOptions(batch_size=0), "batch_size=0 is too small; use at least 1"),
        (
            lambda: DataOptions(loader="on-device"),
            "loader='on-device' is unknown; use one of auto, on_device, streaming",
        ),
        (lambda: DataOptions(normalize="imgnet"), "normalize='imgnet' is unknown"),
        (lambda: build_experiment(wrong_config()), "config.optimizer.wd_mask='kernel' is out of range"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert words in str(error.value)


def wrong_config():
    config = default_config(total_steps=1)
    config.optimizer.wd_mask = "kernel"
    return config


def test_lists_of_parameters_have_names_too():
    mults = weight_decay_mults([{"kernel": 1.0}, {"bias": 1.0}])
    assert mults == [{"kernel": 1.0}, {"bias": 0.0}]
