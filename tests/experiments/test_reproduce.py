"""The program that trains tables: its runs, their figures, and the reports."""

import base64
import html.parser
import json
import math
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from experiments.reproduce import __main__ as reproduce
from experiments.runner import progress, report, results
from experiments.runner.run_spec import Budget, Reference, RunSpec
from experiments.tables import TABLES

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(path, *options):
    return reproduce.main(["reproduce", "--table=keras_examples", f"--workdir={path}", *options])


def rows_of(path):
    return {row["id"]: row for row in json.loads((path / "report.json").read_text())["rows"]}


def test_each_row_is_trained_with_each_seed_and_reported_beside_what_was_published(fake, tmp_path, capsys):
    path = tmp_path / "out"
    assert start(path, "--rows=mixer-1,fnet-paper-1", "--seeds=2", "--config.dataset.data_dir=/d") == 0
    options = [settings for settings, *_ in fake()]
    assert [
        (settings["config"], settings["config.seed"], settings.get("config.total_epochs")) for settings in options
    ] == [
        ("configs/mixer_cifar100.py:one_epoch", "0", None),
        ("configs/mixer_cifar100.py:one_epoch", "1", None),
        ("configs/fnet_cifar100.py:paper", "0", "1.0"),
        ("configs/fnet_cifar100.py:paper", "1", "1.0"),
    ]
    assert {settings["config.dataset.data_dir"] for settings in options} == {"/d"}
    mixer, fnet = rows_of(path).values()
    assert mixer["measured"]["accuracy"]["values"] == pytest.approx([0.10, 0.12])
    assert mixer["measured"]["accuracy"]["mean"] == pytest.approx(0.11)
    assert mixer["measured"]["accuracy"]["deviation"] == pytest.approx(0.02 / math.sqrt(2))
    assert mixer["difference"]["accuracy"] == pytest.approx(0.11 - 0.0976)
    # Above what was published, and below what Keras itself gives on these images: 17.05 % less its noise.
    assert mixer["verdict"] == "not reproduced"
    assert any("top-1: 11.00 % is below" in reason.replace("%", " %") for reason in mixer["reasons"])
    assert fnet["verdict"] == "nothing to compare with" and fnet["published"] == {}
    assert mixer["commands"][1] == (
        "python -m patchnets.main --config=configs/mixer_cifar100.py:one_epoch --config.seed=1 "
        "--workdir=runs/out/mixer-1/seed-1"
    )
    options = [shlex.split(command)[-1] for row in (mixer, fnet) for command in row["commands"]]
    assert all(word.startswith("--workdir=runs/") for word in options) and len(set(options)) == 4
    screen = capsys.readouterr().out
    assert "mixer-1 seed 1: test top-1 12.00%, top-5 32.00%, 1 min" in screen
    written = (path / "report.md").read_text()
    assert "|mixer-1|cifar100|1|top-1|9.76|11.00 ± 1.41|+1.24|not reproduced|1 min|500|" in written
    assert written.count("python -m patchnets.main") == 4


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_what_is_missing_is(fake, tmp_path):
    path = tmp_path / "out"
    assert start(path, "--rows=mixer-1") == 0
    assert start(path, "--rows=mixer-1", "--seeds=3") == 0
    assert [settings["config.seed"] for settings, *_ in fake()] == ["0", "1", "2"]
    assert rows_of(path)["mixer-1"]["seeds"] == [0, 1, 2]
    summary = path / "mixer-1/seed-1/summary.json"
    summary.write_text(summary.read_text().replace("hash", "another"))  # of another configuration
    assert start(path, "--rows=mixer-1", "--seeds=3", "--report") == 0
    row = rows_of(path)["mixer-1"]
    assert (row["seeds"], row["verdict"], len(fake())) == ([0, 2], "not run", 3)
    assert any("2 of 3 seeds finished: figures are not final" in reason for reason in row["reasons"])
    assert "|not run (2/3)|" in (path / "report.md").read_text()


@pytest.mark.slow
def test_a_run_that_fails_costs_its_row_and_no_other(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAIL", "1")
    path = tmp_path / "out"
    assert start(path, "--rows=mixer-1,gmlp-1", "--seeds=2") == 1
    assert len(fake()) == 4
    for row in rows_of(path).values():
        assert row["verdict"] == "not run" and row["seeds"] == [0]
        assert "seed 1 failed, status 1: no images" in row["reasons"]
    assert "mixer-1 seed 1 failed, status 1: no images" in capsys.readouterr().out


@pytest.mark.slow
def test_another_data_set_or_recipe_gets_no_verdict(fake, tmp_path):
    path = tmp_path / "out"
    (tmp_path / "images" / "train").mkdir(parents=True)
    assert start(path, "--rows=mixer-1", f"--data=folder:{tmp_path / 'images'}") == 0
    row = rows_of(path)["mixer-1"]
    assert (row["verdict"], row["dataset"]) == ("other data", "folder:images")
    assert "on folder:images instead of the table's cifar100" in row["reasons"]
    assert not report.peers(row)
    ((settings, *_), *_) = fake()
    assert (
        settings["config.dataset.path"] == str(tmp_path / "images") and settings["config.dataset.train_split"] == "None"
    )
    assert "--data=folder:PATH" in (path / "report.md").read_text().splitlines()[2]
    for name in ("report.md", "report.html", "report.json"):
        text = (path / name).read_text()
        assert str(tmp_path) not in text and "on the same images" not in text, name
    (tmp_path / "others" / "train").mkdir(parents=True)
    assert start(path, "--rows=mixer-1", f"--data=folder:{tmp_path / 'others'}") == 0
    assert len(fake()) == 2, "other images are another run"
    assert start(tmp_path / "other", "--rows=mixer-1", "--config.batch_size=64") == 0
    row = rows_of(tmp_path / "other")["mixer-1"]
    assert row["verdict"] == "other recipe" and "changed: batch_size" in row["reasons"]


@pytest.mark.slow
def test_a_tables_own_data_set_by_its_name_is_none_other(fake, tmp_path):
    path = tmp_path / "out"
    assert start(path, "--rows=mixer-1") == 0
    assert start(path, "--rows=mixer-1,convmixer-2", "--data=cifar100") == 0
    assert [settings.get("config.dataset.name") for settings, *_ in fake()] == [
        None,
        "cifar100",
    ]  # and of the Mixer no more
    mixer, convmixer = rows_of(path).values()
    assert (mixer["verdict"], mixer["dataset"], len(report.peers(mixer))) == ("not reproduced", "cifar100", 1)
    assert (convmixer["verdict"], convmixer["dataset"]) == ("other data", "cifar100")


@pytest.mark.slow
def test_rows_run_at_the_same_time_each_on_a_gpu_of_its_own(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(progress.machine, "gpus", lambda: ["H200", "H200"])
    monkeypatch.setenv("WORK", "3")
    assert start(tmp_path / "out", "--rows=mixer-1,fnet-1", "--parallel=5") == 0
    (_, first, began), (_, other, too) = fake()
    assert {first, other} == {"0", "1"} and abs(began - too) < 3  # the second began before the first had ended


def test_the_gpus_that_the_user_names_are_taken(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(progress.machine, "gpus", lambda: ["H200"] * 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert start(tmp_path / "out", "--rows=mixer-1", "--seeds=2") == 0
    assert [gpu for _, gpu, _ in fake()] == ["3", "3"]


def test_seeds_are_the_programs_own(fake, tmp_path, capsys):
    assert start(tmp_path / "out", "--rows=mixer-1", "--config.seed=5") == 2
    assert "--config.seed=5" in capsys.readouterr().err and not fake()


@pytest.mark.slow
def test_stopped_it_tells_its_runs_to_save_and_reports_what_there_is(tmp_path):
    fake = pathlib.Path(__file__).with_name("fake_run.py")
    program = (
        "import sys; from experiments.reproduce import __main__; from experiments.runner import jobs\n"
        f"jobs.PROGRAM = (sys.executable, {str(fake)!r})\n"
        f"sys.exit(__main__.main(['r', '--table=keras_examples', '--rows=mixer-1', '--workdir={tmp_path}/out']))"
    )
    environment = os.environ | {"NOTES": str(tmp_path / "notes"), "SLOW": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
    )
    log = tmp_path / "out/mixer-1/seed-0.log"
    until = time.monotonic() + 60
    while not (log.exists() and "training" in log.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert (tmp_path / "out/mixer-1/seed-0/saved").exists()
    assert "stopped; run the same command to resume" in error and "Traceback" not in error
    assert rows_of(tmp_path / "out")["mixer-1"]["verdict"] == "not run" and "not run (0/1)" in out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--table=imagnet"], "--table: invalid choice: 'imagnet' (choose from "),
        ([], "the following arguments are required: --table; --help lists"),
        (["--table=cifar", "--rows=mixer-1"], "cifar has no row 'mixer-1'; known: convmixer-paper"),
        (["--table=cifar", "--seeds=²"], "--seeds: expected a whole number above 0, and at most 9,999, got '²'"),
        (["--table=cifar", "--workdir=~nobody-of-that-name/x"], "~nobody-of-that-name/x"),
        (
            ["--table=cifar", f"--seeds={'9' * 5000}"],
            "--seeds: expected a whole number above 0, and at most 9,999, got '999",
        ),
        (["--table=cifar", "--seeds=0"], "--seeds: expected a whole number above 0, and at most 9,999, got '0'"),
        (["--table=cifar", "--data=folder:nowhere"], "--data=folder:nowhere: expected folder:PATH"),
        (
            ["--table=cifar", "--data=folder:/"],
            "--data=folder:/: expected folder:PATH, where PATH is a folder with train/",
        ),
        (["--table=cifar", "--data=:x"], "--data=:x: expected the name of a data set, or folder:PATH"),
        (["--table=cifar", "--data=digits:x"], "--data=digits:x: expected the name of a data set, or folder:PATH"),
        (["--table=cifar", "--data=cifar1000"], "--data=cifar1000: config.dataset.name='cifar1000' is no data set"),
        (["--table=cifar", "--config.dataset.name=digits"], "--config.dataset.name=digits: use --data=NAME or"),
        (["--table=cifar", "--config.dataset.path=/x"], "--config.dataset.path=/x: use --data=NAME or --data=folder:"),
        (["--table=cifar", "--wokdir=x"], "unrecognized arguments: --wokdir=x"),
        (["--table=cifar", "--workdir="], "--workdir: expected printable characters, got ''"),
        (["--table=cifar", "--seeds"], "--seeds: expected one argument"),
        (["--table=cifar", "--config.seed", "3"], "unrecognized arguments: 3"),
        (["--table=cifar", "--a\nb"], "unrecognized arguments: --a b"),
        (["--table=cifar", "--rows=convmixer-25", "--config.batch=3"], "batch"),
    ],
)
def test_a_mistake_costs_one_line_and_writes_nothing(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(["reproduce", *options]) == 2
    out, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir())


def test_rows_are_listed_with_what_they_take(capsys):
    assert reproduce.main(["reproduce", "--table=imagenet", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TABLES["imagenet"]) and all("epochs on a cluster" in line for line in lines)


@pytest.mark.slow
def test_a_row_that_was_not_run_says_what_it_needs(tmp_path):
    path = tmp_path / "out"
    assert reproduce.main(["r", "--table=imagenet", f"--workdir={path}", "--report"]) == 0
    for name in ("report.md", "report.html"):
        text = (path / name).read_text()
        assert (
            text.count("needs 300 epochs on a cluster") + text.count("needs 150 epochs") + text.count("needs 90 ") == 16
        )
    assert str(TABLES["keras_examples"][0].cost) == "1 epoch on 2 CPU cores, about 3 min a seed"


@pytest.mark.slow
def test_sizes_need_no_training(tmp_path, capsys):
    assert reproduce.main(["reproduce", "--table=sizes", f"--workdir={tmp_path}"]) == 0
    assert "networks have their published size" in capsys.readouterr().out
    assert "|mlp_mixer B/16|59,880,472|59,880,472|12.62|" in (tmp_path / "report.md").read_text()


def row(**values):
    default = dict(id="r", config="", dataset="d", published={}, source="s", cost=Budget(1, "cpu"), tolerance=0.02)
    return RunSpec(**default | values)


CURVE = {"val_accuracy": [[1.0, 0.16, 0.16, 0.16], [2.0, 0.71, 0.71, 0.71]]}


@pytest.mark.parametrize(
    "values, requested, short",
    [
        (dict(published={"accuracy": 0.52}), 1, []),
        (dict(published={"accuracy": 0.5201}), 1, ["top-1: 50.00% is below 52.01% published minus 2.0%"]),
        (dict(published={"top5_accuracy": 0.3}), 1, ["top-5: not measured"]),
        (dict(peer=Reference("Keras", dict(accuracy=(0.50, 0.52)))), 1, []),
        (
            dict(peer=Reference("Keras", dict(accuracy=(0.51, 0.53)))),
            1,
            ["top-1: 50.00% is below Keras's own mean of 52.00"],
        ),
        (dict(curve={1: 0.154, 2: 0.724}), 2, []),
        (dict(curve={1: 0.19, 2: 0.724, 3: 0.78}), 3, ["epoch 1: 16.00%", "epoch 3: not measured"]),
    ],
)
def test_a_row_is_held_against_every_figure_that_was_published(values, requested, short):
    figures = {"accuracy": {"mean": 0.50}}
    count, actual = results.shortfalls(row(**values), figures, CURVE, dict(accuracy=0.01))
    assert count == requested and len(actual) == len(short)
    assert all(part in line for part, line in zip(short, actual))


def test_seed_noise_is_pooled_over_the_rows_that_were_run_twice():
    rows = [row(peer=Reference("K", dict(accuracy=runs))) for runs in ((0.1, 0.3), (0.2, 0.2, 0.5), (0.4,))] + [row()]
    expected = math.sqrt((0.02 + 0.03) / 2)  # the variances of samples
    assert results.seed_noise(rows, "accuracy") == pytest.approx(expected)
    assert results.seed_noise(rows, "top5_accuracy") == 0.0


class Page(html.parser.HTMLParser):
    """The elements of a page, its text, and whether they are nested as they should be."""

    def __init__(self):
        super().__init__()
        self.open, self.collected, self.texts, self.sources = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.collected.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.slow
def test_the_page_is_one_file_with_its_picture_and_names_nothing_outside(fake, tmp_path):
    path = tmp_path / "out"
    assert start(path, "--rows=mixer-1,fnet-1", "--seeds=2") == 0
    page = Page()
    page.feed((path / "report.html").read_text())
    assert not page.open and page.collected.count("tr") == 1 + 2 * 2
    (picture,) = page.sources
    assert base64.b64decode(picture.removeprefix("data:image/png;base64,")) == (path / "curves.png").read_bytes()
    text = " ".join(page.texts)
    assert "Keras itself on the same images: top-1 19.29 and 18.38 %" in text and "11.00 ± 1.41" in text


def test_what_is_written_is_escaped(tmp_path):
    actual = results.result(row(id="a<b", note="x & <script>"), [], {}, None, {})
    text = report.page("t", "c", [actual], [], None)
    assert "<script>" not in text and "a&lt;b" in text and "x &amp; &lt;script&gt;" in text
