"""The command line: errors are reported in one line, before anything is written or compiled."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from patchnets import config as config_lib
from patchnets import main, models, runtime, train

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = f"--config={ROOT / 'configs' / 'mixer_digits.py'}:paper"
SMALL = [  # of which a run takes a second
    f"--config.{name}"
    for name in ("model.depth=1", "model.hidden_dim=16", "model.tokens_mlp_dim=8", "model.channels_mlp_dim=8")
    + ("augment.zoom=0", "augment.translate=0", "schedule.warmup_epochs=0", "total_epochs=1", "mesh.data=1")
]


@pytest.fixture
def cli_error(capsys, monkeypatch, tmp_path):
    """Return a function that runs a command line, which must fail with status 2, and returns its error line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "enable_compilation_cache", lambda: None)

    def run(*arguments: str, status: int = 2) -> str:
        assert main.main(["patchnets.main", *arguments]) == status
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1, printed
        assert printed.err.startswith("patchnets: ")
        assert list(tmp_path.iterdir()) == []
        return printed.err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config is not given"]),
        (["--config=nowhere.py"], ["nowhere.py", "no such file"]),
        ([DIGITS, "--config.batchsize=3"], ["config.batchsize", "did you mean config.batch_size"]),
        ([DIGITS, "--config.learning_rate=3"], ["config.learning_rate", "config.optimizer.learning_rate"]),
        ([DIGITS + "s"], ["no variant 'papers'", "tutorial, paper"]),
        ([DIGITS, "--config.batch_size=many"], ["config.batch_size", "many"]),
        ([DIGITS, "--config.batch_size=2.5"], ["config.batch_size", "2.5"]),
        ([DIGITS, "--config.batch_size=0"], ["config.batch_size=0", "at least 1"]),
        ([DIGITS, "--config.augment.zoom=1.5"], ["config.augment.zoom=1.5"]),
        ([DIGITS, "--config.optimizer.learning_rate=nan"], ["config.optimizer.learning_rate=nan"]),
        ([DIGITS, "--config.schedule.name=cosinus"], ["cosinus", "constant, cosine, linear"]),
        ([DIGITS, "--config.model.patch_size=3"], ["image_size 8", "patch_size 3", "use 6 or 9"]),
        ([DIGITS, "--config.model.variant=S/64"], ["S/64", "S/32, S/16, B/32"]),
        ([DIGITS, "--config.model.name=resnet"], ["resnet", "mlp_mixer"]),
        ([DIGITS, "--config.model.name=vit"], ["config.model.patch_size is not set", "S/16"]),
        (
            [DIGITS, "--config.reduce_on_plateau.factor=0.5"],
            ["reduce_on_plateau.factor", "reduce_on_plateau.patience", "both"],
        ),
        ([DIGITS, "--config.augment.rotation=1"], ["config.augment.rotation=1"]),
        ([DIGITS, "--config.model.dtype=float8"], ["float8", "bfloat16"]),
        ([DIGITS, "--config.model.dropout_rate=1"], ["dropout_rate=1"]),
        (
            [DIGITS, "--config.total_steps=5", "--config.total_epochs=2"],
            ["config.total_epochs", "config.total_steps=5"],
        ),
        ([DIGITS, "--config.dataset.name=folder"], ["config.dataset.path"]),
        ([DIGITS, "--config.dataset.train_split=train[:10x]"], ["train[:10x]"]),
        ([DIGITS, "--config.dataset.test_split=train[:10%]"], ["train[:10%]", "share"]),
        ([DIGITS, "--config.mesh.data=9"], ["config.mesh.data=9", "8 devices"]),
        ([DIGITS, "--config.batch_size=60"], ["60", "8 devices", "56 or 64"]),
        ([DIGITS, "--config.dataset.max_on_device_gib=1e-9"], ["max_on_device_gib"]),
        ([DIGITS, "--config.schedule.warmup_epochs=60"], ["warmup"]),
        ([DIGITS, "--config.augment.policy=randaug"], ["randaug", "randaugment, autoaugment_cifar10"]),
        ([DIGITS, "--config.augment.hue=0.1"], ["config.augment.hue=0.1", "gray", "set it to 0"]),
        ([DIGITS, "--config.augment.magnitude=31"], ["config.augment.magnitude=31", "from 0 to 30"]),
        ([DIGITS, "--config.grad_accum_steps=3"], ["config.grad_accum_steps=3", "config.batch_size=64"]),
        ([DIGITS, "--config.grad_accum_steps=16"], ["config.grad_accum_steps=16", "parts of 4", "8 devices"]),
        ([DIGITS, "--config.dataset.loader=streaming"], ["on_device"]),
        ([DIGITS, "--config.optimizer.lr_mults=(('heads/.*',2.0),('.*',1.0))"], ["heads/.*", "head/"]),
        ([DIGITS, "--config.optimizer.frozen=(('head/.*',True),)"], ["no rule matches", "end the list"]),
        ([DIGITS, "--config.total_epochs=1e308"], ["config.total_epochs=1e+308", "above 0"]),
        ([DIGITS, "--config.total_epochs=1e30"], ["total_epochs=1e+30", "steps"]),
        ([DIGITS, "--config.init_head_bias=nan"], ["config.init_head_bias=nan", "finite"]),
        ([DIGITS, "--config.optimizer.learning_rate=1e300"], ["config.optimizer.learning_rate=1e+300"]),
        ([DIGITS, "--config.image_size=100000000"], ["config.image_size=100000000", "16384"]),
        ([DIGITS, "--config.model.hidden_dim=2000000000"], ["hidden_dim=2000000000", "1,048,576"]),
        ([DIGITS, "--config.schedule.name=step"], ["needs an interval", "step_every_epochs"]),
        ([DIGITS, "--wrokdir=x"], ["wrokdir"]),
        ([DIGITS, "extra"], ["extra"]),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(cli_error, arguments, words):
    message = cli_error(*arguments)
    assert all(word in message for word in words), message


def test_errors_in_a_config_file_are_told_with_their_kind(cli_error, tmp_path_factory):
    path = tmp_path_factory.mktemp("configs")
    (path / "unknown.py").write_text(
        "from patchnets.config import common\ndef get_config():\n    return common.base(bacth_size=3)\n"
    )
    (path / "wrong.py").write_text(
        "from patchnets.config import common\ndef get_config():\n    return common.base(batch_size='3')\n"
    )
    (path / "syntax.py").write_text("def get_config(:\n")
    (path / "missing.py").write_text("import no_such_module\n")
    (path / "empty.py").write_text("x = 1\n")
    (path / "changed.py").write_text(
        "from patchnets.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        "    config.model.update(hiden_dim=3)\n    return config\n"
    )
    assert "changed.py: unknown key config.hiden_dim; did you mean config.model.hidden_dim? (line 6)" in cli_error(
        f"--config={path / 'changed.py'}"
    )
    assert "unknown key config.bacth_size; did you mean config.batch_size?" in cli_error(
        f"--config={path / 'unknown.py'}"
    )
    assert "wrong.py cannot be loaded: TypeError" in (message := cli_error(f"--config={path / 'wrong.py'}"))
    assert "batch_size" in message
    assert "SyntaxError" in cli_error(f"--config={path / 'syntax.py'}")
    assert "no_such_module" in cli_error(f"--config={path / 'missing.py'}")
    assert "get_config" in cli_error(f"--config={path / 'empty.py'}")


@pytest.fixture
def parsed(monkeypatch):
    """Runs a command line and returns the configuration and work directory that training would get."""

    def run(*arguments: str):
        caught = []
        monkeypatch.setattr(train, "train", lambda *settings, **_: caught.append(settings))
        assert main.main(["patchnets.main", *arguments]) == 0
        return caught[0]

    return run


def test_overrides_of_every_kind_reach_the_run(parsed):
    config, workdir = parsed(
        DIGITS, "--config.model.variant=B/16", "--config.image_size", "32", "--config.model.patch_size=4",
        "--config.augment.flip", "--config.seed=3", "--noconfig.plots", "--workdir=somewhere",
        "--config.total_steps=10",
    )  # fmt: skip
    assert workdir == "somewhere"
    chosen = models.resolve_fields(**config.model)
    assert (chosen["depth"], chosen["hidden_dim"], chosen["patch_size"]) == (12, 768, 4)  # B/16's but for what is given
    assert (config.model.variant, config.image_size, config.model.patch_size, config.seed) == ("B/16", 32, 4, 3)
    assert config.augment.flip is True and config.plots is False
    assert config.total_epochs is None and config.total_steps == 10


def test_a_key_may_be_left_without_a_value(parsed):
    tutorial = DIGITS.removesuffix(":paper")
    assert parsed(tutorial)[0].early_stopping.patience == 10
    config, _ = parsed(
        tutorial, "--config.early_stopping.patience=None", "--config.total_steps=5", "--config.eval_batch_size=None"
    )
    assert (config.early_stopping.patience, config.total_steps, config.total_epochs) == (None, 5, None)


def test_claims_hold_for_the_recipe_of_the_file_alone(parsed):
    cifar = "--config=configs/mixer_cifar100.py"
    held = parsed(cifar, "--config.total_epochs=50", "--config.seed=4", "--config.log_every_steps=10")[0]
    assert held.published.incomparable is None and held.published.accuracy == 0.4758
    changed = parsed(cifar, "--config.total_epochs=1", "--config.seed=4")[0]
    assert changed.published.incomparable == "config.total_epochs was changed"


def test_another_model_takes_nothing_from_the_one_of_the_file(parsed):
    config, _ = parsed(DIGITS, "--config.model.name=vit", "--config.model.variant=Ti/16", "--config.model.patch_size=2")
    assert models.resolve_fields(**config.model) == models.MODELS["vit"][1]["Ti/16"] | dict(patch_size=2)


def test_the_work_directory_is_named_after_the_configuration(parsed):
    assert parsed(DIGITS)[1] == "runs/mixer_digits-paper"
    assert parsed(DIGITS.removesuffix(":paper"))[1] == "runs/mixer_digits"


def test_help_explains_every_key_and_what_the_exit_statuses_mean(capsys):
    assert main.main(["patchnets.main", DIGITS, "--help"]) == 0
    text = capsys.readouterr().out
    for name in config_lib.known_keys():
        assert f"--config.{name} " in text
    assert "143" in text and "--workdir" in text and "PATCHNETS_HUGE_PAGES=0" in text
    assert "--config.image_size" in text and " 8 " in text


def test_a_mistake_costs_one_line_and_status_2_in_a_real_process(tmp_path):
    command = [
        sys.executable,
        "-m",
        "patchnets.main",
        DIGITS,
        "--config.model.patch_size=3",
        f"--workdir={tmp_path / 'x'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "image_size 8 is not divisible by patch_size 3" in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_work_directory_that_cannot_be_made_is_told_in_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main.main(["patchnets.main", DIGITS, "--config.mesh.data=1", f"--workdir={path}"]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and str(tmp_path / "file") in printed.err, printed


@pytest.mark.slow
def test_the_digits_train_where_tensorflow_tfds_and_grain_are_not_installed(tmp_path):
    absent = ["tensorflow", "tensorflow_datasets", "tensorboard", "grain", "array_record"]
    arguments = ["", DIGITS, *SMALL, f"--workdir={tmp_path / 'x'}"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); from patchnets import main; "
        f"sys.exit(main.main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "TensorBoard events are not written: tensorboard is not installed\n"
    assert (tmp_path / "x" / "summary.json").exists()


@pytest.mark.slow
def test_nothing_is_imported_that_the_run_does_not_use(tmp_path):
    """TensorBoard for events only, and then after the first step; TensorFlow never."""
    program = f"""
import sys
from patchnets import main
from patchnets.run import console

LARGE = "tensorflow tensorboard tensorflow_datasets grain keras torch matplotlib sklearn scipy".split()
say = console.ProgressBar.write

def told(when):
    print("loaded", when, *[name for name in LARGE if name in sys.modules])

def saying(progress, text):
    if text.startswith("first step after"):
        told("at first")
    say(progress, text)

console.ProgressBar.write = saying
for place, board in (("without", "--noconfig.tensorboard"), ("with", "--config.tensorboard")):
    arguments = [*{SMALL}, "--noconfig.plots", "--config.dataset.cache_dir={tmp_path}", "--workdir={tmp_path}/" + place]
    assert main.main(["", {DIGITS!r}, *arguments, board]) == 0
    told("at last")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("loaded at")]
    assert [row[0] for row in loaded] == ["first", "last", "first", "last"]
    assert loaded[:3] == [["first"], ["last"], ["first"]]
    assert loaded[3] == ["last", "tensorboard"]


def test_pictures_of_several_processes_are_drawn_once_after_the_end(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(main.os, "execv", lambda _, command: drawn.append(command[-1]))
    monkeypatch.setattr(main.os, "dup2", lambda *_: None)
    argv = ["patchnets.main", DIGITS, f"--workdir={tmp_path}"]
    (tmp_path / "plots").mkdir()
    picture, summary = tmp_path / "plots" / "curves.png", tmp_path / "summary.json"
    for path in (picture, summary):
        path.touch()
    os.utime(summary, (2e9, 2e9))  # after the picture, which somebody drew of a run under way
    main._draw(argv)
    os.utime(picture, (2e9 + 1, 2e9 + 1))
    main._draw(argv)
    assert drawn == [str(tmp_path)]


def test_a_config_file_is_executed_once(parsed, tmp_path):
    """The file notes each of its executions, and each call of its function."""
    file, notes = tmp_path / "noted.py", tmp_path / "notes"
    file.write_text(
        "from configs import mixer_digits\n"
        f"def note(text):\n    with open({str(notes)!r}, 'a') as sink:\n        print(text, file=sink)\n"
        "note('executed')\n"
        "def get_config(variant='tutorial'):\n    note(variant)\n    return mixer_digits.get_config(variant)\n"
    )
    config, _ = parsed(f"--config={file}:paper", "--config.batch_size=32", "--config.eval_batch_size=None")
    assert notes.read_text() == "executed\npaper\n"
    assert config.batch_size == 32 and config.model.variant == parsed(DIGITS)[0].model.variant


def test_a_config_file_that_changes_is_read_again(parsed, tmp_path):
    file = tmp_path / "changed.py"
    text = "from configs import mixer_digits\ndef get_config():\n    return mixer_digits.get_config()\n"
    file.write_text(text)
    before = parsed(f"--config={file}")[0].seed
    file.write_text(
        text.replace(
            "return mixer_digits.get_config()",
            "config = mixer_digits.get_config()\n    config.seed = 77\n    return config",
        )
    )
    assert (before, parsed(f"--config={file}")[0].seed) == (0, 77)
    assert parsed("--config", str(file), "--config.seed=3")[0].seed == 3


def test_a_config_file_whose_function_returns_no_configuration_is_refused(cli_error, tmp_path_factory):
    file = tmp_path_factory.mktemp("configs") / "none.py"
    file.write_text("def get_config():\n    return ['batch_size', 3]\n")
    assert "get_config() returns a list; expected a ConfigDict" in cli_error(f"--config={file}")


@pytest.mark.parametrize("value", ["{VALUES}", "ml_collections.ConfigDict({VALUES})"])
def test_a_config_file_may_return_a_dictionary_of_what_differs_from_the_defaults(parsed, tmp_path, value):
    file = tmp_path / "mine.py"
    values = "{'batch_size': 3, 'total_steps': 5, 'model': {'variant': 'S/16'}, 'optimizer': {'name': 'sgd'}}"
    file.write_text(f"import ml_collections\ndef get_config():\n    return {value.format(VALUES=values)}\n")
    config, workdir = parsed(f"--config={file}", "--config.optimizer.momentum=0.5")
    assert (config.batch_size, config.model.variant, config.optimizer.name) == (3, "S/16", "sgd")
    assert (config.optimizer.momentum, config.seed, config.augment.flip) == (0.5, 0, False)
    assert workdir == os.path.join("runs", "mine")


def test_the_config_json_of_a_work_directory_is_a_configuration(parsed, tmp_path):
    from patchnets import config as config_lib

    config, _ = parsed(DIGITS, "--config.seed=5", "--config.optimizer.lr_mults=((('head/.*', 2.0),))")
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(config_lib.unflatten(config_lib.flatten(config))))
    again, _ = parsed(f"--config={saved}")
    assert config_lib.flatten(again) == config_lib.flatten(config)
    assert parsed(f"--config={saved}", "--config.seed=6")[0].seed == 6


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "cannot be read"),
        ("[1]", "holds a list; expected a configuration"),
        ('{"batch_size": "three"}', "cannot be loaded"),
        ('{"batchsize": 3}', "unknown key config.batchsize; did you mean config.batch_size?"),
        ('{"batch_size": {"a": 1}}', "config.batch_size"),
    ],
)
def test_a_json_file_that_is_no_configuration_is_one_line(cli_error, tmp_path_factory, content, words):
    file = tmp_path_factory.mktemp("configs") / "config.json"
    file.write_text(content)
    assert words in cli_error(f"--config={file}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, value, words",
    [
        ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS=cuda: JAX cannot use that"),
        ("JAX_PLATFORMS", "tpu", "JAX_PLATFORMS=tpu: JAX cannot use that"),
        ("JAX_ENABLE_X64", "1", "JAX_ENABLE_X64 is set, but training state is counted in 32 bits; unset it"),
    ],
)
def test_a_setting_of_jax_that_cannot_work_is_one_line(tmp_path, name, value, words):
    if value == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("there is such a device")
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")} | {name: value}
    command = [sys.executable, "-m", "patchnets.main", DIGITS, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert words in done.stderr and not (tmp_path / "run").exists()
