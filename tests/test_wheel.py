"""An installed wheel works from any folder."""

import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

from patchnets.config import flags
from patchnets.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ["model.depth=1", "model.hidden_dim=16", "total_epochs=1", "mesh.data=1"]


def test_every_package_is_in_the_wheel():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "patchnets").rglob("*.py")}
    assert sorted(setuptools["packages"]) == sorted(packages | {"patchnets.configs"})


def test_every_file_of_data_is_in_the_wheel():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = {
        (".".join(path.parent.relative_to(ROOT).parts), path.name)
        for path in (ROOT / "patchnets").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert files == {(package, name) for package, names in declared.items() for name in names}


@pytest.mark.slow
def test_an_installed_wheel_trains_from_another_folder(tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    source = tmp_path / "source"  # built from a copy: a build leaves files behind
    copied = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(copied, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(installed), str(source)], check=True, timeout=120)
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"patchnets"}
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "patchnets.main", "--config=mixer_digits", *(f"--config.{key}" for key in SMALL)]
    options = dict(cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "runs" / "mixer_digits" / "summary.json").exists()
    done = subprocess.run([sys.executable, "-m", "patchnets.main", "--config=mixer_digit"], **options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--config=mixer_digit: there is no such file" in done.stderr and "mean mixer_digits" in done.stderr


def test_a_configuration_is_found_by_its_name_and_by_its_path(tmp_path, monkeypatch):
    ours = str(ROOT / "configs" / "mixer_digits.py")
    monkeypatch.chdir(tmp_path)
    assert pathlib.Path(flags.find_config("mixer_digits")).resolve() == pathlib.Path(ours).resolve()
    assert flags.find_config(ours) == ours
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mixer_digits.py").write_text("")  # a person's own comes first
    assert flags.find_config("mixer_digits") == str(pathlib.Path("configs") / "mixer_digits.py")
    config, workdir = flags.parse_flags(["main", "--config=gmlp_digits:paper", "--config.batch_size=32"])
    assert (config.model.name, config.batch_size) == ("gmlp", 32)
    assert pathlib.Path(workdir) == pathlib.Path("runs") / "gmlp_digits-paper"
    with pytest.raises(UserError, match=r"mixer_digis.*did you mean mixer_digits"):
        flags.find_config("mixer_digis")
