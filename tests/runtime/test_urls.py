"""Paths that are URLs are refused at once, in one line, wherever a path is expected."""

import importlib
import pathlib

import pytest

import patchnets
from patchnets.errors import UserError
from patchnets.run.workdir import Workdir
from patchnets.runtime import cache_root
from patchnets.runtime.files import is_url

BUCKET = "gs://bucket/runs/x"
ROOT = pathlib.Path(__file__).resolve().parents[2]
DIGITS = f"--config={ROOT / 'configs' / 'mixer_digits.py'}"
COMMANDS = [
    ("patchnets.main", [DIGITS, f"--workdir={BUCKET}"]),
    ("patchnets.main", [DIGITS, "--config.dataset.name=folder", f"--config.dataset.path={BUCKET}"]),
    ("patchnets.main", [DIGITS, f"--config.dataset.name={BUCKET}"]),
    ("patchnets.main", [DIGITS, f"--config.dataset.cache_dir={BUCKET}"]),
    ("patchnets.predict.__main__", [BUCKET, "image.png"]),
    ("patchnets.predict.__main__", ["model", "image.png", f"--output={BUCKET}.csv"]),
    ("patchnets.predict.__main__", ["model", "image.png", f"--explain={BUCKET}"]),
    ("patchnets.predict.__main__", ["model", f"{BUCKET}.png"]),
    ("patchnets.evaluate.__main__", [BUCKET]),
    ("patchnets.evaluate.__main__", ["model", f"--data={BUCKET}"]),
    ("patchnets.export.__main__", [BUCKET, "--to=timm"]),
    ("patchnets.plots.__main__", [BUCKET]),
    ("patchnets.plots.__main__", ["mixing", BUCKET]),
    ("patchnets.plots.__main__", ["augment", DIGITS, f"--out={BUCKET}.png"]),
    ("patchnets.estimate.__main__", [DIGITS, f"--json={BUCKET}"]),
    ("experiments.reproduce.__main__", ["mixer_digits", f"--workdir={BUCKET}"]),
    ("experiments.sweep.__main__", [DIGITS, f"--workdir={BUCKET}"]),
    ("experiments.launch.__main__", ["slurm", DIGITS, f"--workdir={BUCKET}"]),
    ("experiments.launch.__main__", ["k8s", DIGITS, f"--workdir={BUCKET}"]),
]


@pytest.mark.parametrize("module, arguments", COMMANDS, ids=[" ".join([m, *a[-1:]]) for m, a in COMMANDS])
def test_commands_refuse_them_in_one_line(module, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(module).main([module, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "gs://bucket/runs/x" in printed.err, printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use", [patchnets.load, lambda path: Workdir(path, {}), cache_root])
@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run", "file:///abs/path", "HDFS://host/x"])
def test_functions_refuse_them(use, path, monkeypatch):
    monkeypatch.setenv("PATCHNETS_CACHE", path)
    with pytest.raises(UserError, match=f"{path} is a URL; mount the bucket or the share"):
        use(path)


@pytest.mark.parametrize(
    "path", ["runs/x", "/abs", "~/x", "C:/x", "a:b", "./gs:/x", "with space://x", "", "runs/a://b"]
)
def test_paths_are_no_urls(path):
    assert not is_url(path)


def test_a_url_that_became_a_path_still_is_a_url():
    assert is_url(pathlib.PurePosixPath("gs://bucket/x"))
