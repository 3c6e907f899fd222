"""python -m patchnets.weights SOURCE --against=CONFIG: what a run of a configuration would take of weights."""

import jax
import pytest
import small_models
from small_models import entries_of, write

from patchnets.weights import __main__ as command

DIGITS = ("--config.image_size=16", "--config.dataset.name=digits")


@pytest.fixture
def weights(tmp_path):
    """An export of a Mixer for five classes of RGB images of 16 px."""
    small_models.make_model("mlp_mixer").export(tmp_path / "weights", "npz", verified=False)
    return tmp_path / "weights"


@pytest.fixture
def config(tmp_path):
    """A configuration that sets no network."""
    (tmp_path / "bare.py").write_text(
        "from patchnets.config import default_config\n\n\ndef get_config():\n    return default_config(total_steps=1)\n"
    )
    return f"--against={tmp_path / 'bare.py'}"


def output(capsys, *arguments):
    assert command.main(["weights", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return [" ".join(line.split()) for line in printed.out.splitlines()]


def test_every_array_is_taken_adapted_new_or_left_out(weights, config, capsys):
    rows = output(capsys, weights, config, *DIGITS, "--config.image_size=32", "--config.init.resize=block_diagonal")
    assert any(row.endswith("mlp_mixer for 32 pixels and 10 classes (digits)") for row in rows)
    token_mixing = "params/MixerBlock_1/token_mixing/Dense_0/kernel"
    assert f"adapted {token_mixing} (16, 6) -> (64, 24), block_diagonal" in rows
    assert "adapted params/stem/kernel (4, 4, 3, 16) -> (4, 4, 1, 16)" in rows
    assert "taken params/MixerBlock_0/channel_mixing/Dense_1/kernel (24, 16)" in rows
    assert "new params/head/kernel config.init.head=new" in rows
    assert "left out params/head/kernel config.init.head=new" in rows
    taken, adapted, new, left_out = (
        sum(row.startswith(f"{what} params/") for row in rows) for what in ("taken", "adapted", "new", "left out")
    )
    assert f"{taken} arrays as they are, {adapted} adapted, {new} new" in rows
    assert taken + adapted + left_out == len(jax.tree.leaves(small_models.make_model("mlp_mixer").variables))


def test_data_that_are_not_on_this_machine_are_not_needed(weights, config, capsys, tmp_path):
    absent = ("--config.dataset.name=imagenet2012", f"--config.dataset.data_dir={tmp_path}", "--config.image_size=16")
    assert any("1,000 classes (imagenet2012)" in row for row in output(capsys, weights, config, *absent))
    other = ("--config.dataset.name=cifar100", *absent[1:], "--config.init.head=keep")
    assert "taken params/head/bias (5,)" in output(capsys, weights, config, *other, "--classes=5")
    assert command.main(["weights", str(weights), config, *other]) == 2
    assert "nothing is downloaded to look; give --classes=K" in capsys.readouterr().err


def test_an_architecture_that_the_file_does_not_say_is_handed_on(config, capsys, tmp_path):
    write(tmp_path / "vit", entries_of(small_models.make_model("vit", dict(gelu="exact", hidden_dim=48, num_heads=3))))
    rows = output(capsys, tmp_path / "vit", config, *DIGITS, "--network=vit_tiny_patch16_224")
    assert any(row.endswith("vit for 16 pixels and 10 classes (digits)") for row in rows)
    arguments = [str(tmp_path / "vit"), config, *DIGITS, "--config.init.network=vit_tiny_patch16_224"]
    assert command.main(["weights", *arguments]) == 2  # the description needs it too
    assert "does not say how many heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.model.name=vit", "--config.model.variant=S/16"], "holds a MlpMixer, and config.model is a Vision"),
        (["--config.init.head=keep"], "the weights have the class 'a' where the data have '0'"),
        (["--config.init.resize=block_diagonal", "--config.image_size=24"], "rule=block_diagonal needs"),
        (["--config.model.attention_impl=plain"], "mlp_mixer has no such field"),
        (["--config.model.drop_path_rate=1.5"], "config.model.drop_path_rate=1.5 is out of range"),
        (["--config.init.heads=keep"], "unknown key config.init.heads; did you mean"),
        (["--config.image_size=15"], "image_size 15 is not divisible by patch_size 4"),
    ],
)
def test_what_does_not_fit_is_one_line_and_status_2(weights, config, arguments, words, capsys):
    assert command.main(["weights", str(weights), config, *DIGITS, *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1


def test_overrides_of_no_configuration_are_refused(weights, capsys):
    assert command.main(["weights", str(weights), "--config.seed=1"]) == 2
    assert "--config.seed=1 needs --against=CONFIG" in capsys.readouterr().err
