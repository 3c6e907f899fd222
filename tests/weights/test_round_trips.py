"""Our networks in the files of others, and read from them again by those files alone: the same bits and fields."""

import jax
import numpy as np
import pytest
import small_models

from patchnets.weights.pretrained import read_pretrained

VITS = {
    "class token": {},
    "mean": dict(pool_type="gap"),
    "attention pooling": dict(pool_type="map"),
    "fixed positions": dict(pool_type="gap", posemb="sincos2d"),
}
NPZ = {
    "mlp_mixer": ("mlp_mixer", dict(gelu="tanh")),
    **{f"vit, {name}": ("vit", fields) for name, fields in VITS.items()},
    "vit, representation": ("vit", dict(rep_size=7)),
}
TIMM = {
    "mlp_mixer": ("mlp_mixer", {}),
    "gmlp": ("gmlp", {}),
    "convmixer": ("convmixer", {}),
    "convmixer, relu": ("convmixer", dict(activation="relu")),
    **{f"vit, {name}": ("vit", fields) for name, fields in VITS.items() if "posemb" not in fields},
    "vit, no positions": ("vit", dict(pool_type="gap", posemb="none")),
    "vit, exact, layer scale": ("vit", dict(gelu="exact", layer_scale=0.1)),
    "vit, mean, then norm": ("vit", dict(pool_type="gap", norm_after_pooling=True)),
}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    ("to", "name"), [*(("npz", name) for name in NPZ), *(("timm", name) for name in TIMM)], ids=str
)
def test_what_is_exported_is_read_again_without_model_json(to, name, scan, tmp_path):
    family, fields = (NPZ if to == "npz" else TIMM)[name]
    model = small_models.make_model(family, fields | dict(scan=scan), crop_pct=0.875, decoded_size=32)
    model.export(tmp_path / "exported", to, verified=False)
    (tmp_path / "exported" / "model.json").unlink()
    again = read_pretrained(tmp_path / "exported" / "model.npz" if to == "npz" else tmp_path / "exported")
    plain = small_models.make_model(family, fields)
    assert jax.tree.structure(again.variables) == jax.tree.structure(plain.variables)
    jax.tree.map(np.testing.assert_array_equal, again.variables, plain.variables)
    assert (again.network, again.fields) == (family, plain.spec.fields)
    if to == "timm":
        assert (again.classes, again.crop_pct, again.assumed) == (tuple("abcde"), 0.875, ())
        np.testing.assert_allclose((again.mean, again.std), (plain.spec.mean, plain.spec.std), rtol=1e-6)
