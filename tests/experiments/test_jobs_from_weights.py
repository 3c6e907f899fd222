"""Rows of a table that leave their network to trained weights."""

import pytest
from small_models import make_model

from experiments.runner import jobs
from experiments.runner.run_spec import Budget, RunSpec
from patchnets import config as config_lib
from patchnets.config import flags
from patchnets.errors import UserError
from patchnets.inference.warm_start import fields_of_weights


@pytest.fixture
def file(tmp_path):
    """A configuration that names weights and no network."""
    make_model("mlp_mixer").export(tmp_path / "weights", "npz", verified=False)
    (tmp_path / "warm.py").write_text(
        "from patchnets.config import default_config\n\n\n"
        "def get_config():\n"
        f"    return default_config(init=dict(weights={str(tmp_path / 'weights')!r}), image_size=16, total_steps=1)\n"
    )
    return tmp_path / "warm.py"


def test_a_row_has_the_hash_that_its_run_writes(file, tmp_path):
    row = RunSpec("r", str(file), "digits", {}, "source", Budget(1, "cpu"))
    made = jobs.job(row, 0, tmp_path / "runs", None, ())
    config = flags.parse_flags(["test", f"--config={file}", "--config.seed=0"])[0]
    bare = config_lib.config_hash(config)
    config.update_from_flattened_dict(fields_of_weights(config_lib.flatten(config)))
    assert config.model.hidden_dim == 16
    assert made.config_hash == config_lib.config_hash(config) != bare


def test_another_network_than_that_of_the_weights_is_refused(file):
    config = flags.parse_flags(["test", f"--config={file}", "--config.model.name=vit"])[0]
    with pytest.raises(UserError, match=r"config\.model\.name=vit, and config\.init\.weights holds a mlp_mixer"):
        fields_of_weights(config_lib.flatten(config))
