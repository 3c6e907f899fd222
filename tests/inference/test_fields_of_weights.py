"""The network of a configuration that leaves it to trained weights."""

import pytest
import small_models
from small_models import entries_of, write

from patchnets import config as config_lib
from patchnets.config import default_config
from patchnets.errors import UserError
from patchnets.inference.warm_start import fields_of_weights


def fields(source, init=None, **values):
    config = default_config(
        init=dict(weights=str(source)) | (init or {}), **dict(image_size=16, total_steps=1) | values
    )
    config_lib.validate(config)
    config.update_from_flattened_dict(fields_of_weights(config_lib.flatten(config)))
    config_lib.validate(config)
    return config.model


@pytest.fixture
def mixer(tmp_path):
    small_models.make_model("mlp_mixer").export(tmp_path / "mixer", "npz", verified=False)
    return tmp_path / "mixer"


def test_tiles_need_as_many_hidden_units_as_the_weights_will_have(mixer):
    assert fields(mixer, image_size=32).tokens_mlp_dim == 6
    assert fields(mixer, dict(resize="block_diagonal")).tokens_mlp_dim == 6
    assert fields(mixer, dict(resize="block_diagonal"), image_size=32).tokens_mlp_dim == 24
    with pytest.raises(UserError, match="6 x 6 patches are no multiple of 4 x 4"):
        fields(mixer, dict(resize="block_diagonal"), image_size=24)


def test_what_only_training_looks_at_may_be_set(mixer):
    changes = dict(drop_path_rate=0.25, remat=True, scan=True, dtype="bfloat16")
    model = fields(mixer, model=changes)
    assert (model.name, model.hidden_dim, model.gelu) == ("mlp_mixer", 16, "exact")
    assert {name: model[name] for name in changes} == changes


def test_a_field_of_the_network_makes_it_the_configuration_s_own(mixer):
    with pytest.raises(UserError, match=r"config\.model\.\w+ is not set"):
        fields(mixer, model=dict(name="mlp_mixer", depth=2))


def test_a_field_that_the_network_of_the_weights_does_not_have_is_refused(mixer):
    with pytest.raises(UserError, match=r"config\.model\.attention_impl='plain': mlp_mixer has no such field"):
        fields(mixer, model=dict(attention_impl="plain"))


def test_the_architecture_of_a_bare_file_is_named(tmp_path):
    changes = dict(gelu="exact", hidden_dim=48, num_heads=3)
    file = write(tmp_path, entries_of(small_models.make_model("vit", changes))) / "model.safetensors"
    with pytest.raises(UserError, match=r"of a run, config\.init\.network=NAME"):
        fields(file)
    model = fields(file, dict(network="vit_tiny_patch16_224"))
    assert (model.name, model.num_heads) == ("vit", 3)
    with pytest.raises(UserError, match="holds the weights of vit, not of network=gmlp"):
        fields(file, dict(network="gmlp"))
