"""The page: what it answers, through its own client as a browser would ask, and that it asks nobody else."""

import os
import socket
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from chromium import Chromium, find_chromium
from PIL import Image

import patchnets
from patchnets import train
from patchnets.config import common
from patchnets.demo import OFFLINE
from patchnets.demo import __main__ as program
from patchnets.inference import overlay

os.environ.update(OFFLINE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work directory."""
    root = tmp_path_factory.mktemp("demo")
    config = common.base(
        dataset=dict(name="digits", cache_dir=str(root)),
        image_size=8,
        model=dict(name="vit", patch_size=4, depth=1, hidden_dim=8, mlp_dim=8, num_heads=1),
        batch_size=64,
        total_steps=5,
        tensorboard=False,
        plots=False,
    )
    train.train(config, root / "run")
    return root / "run"


@pytest.fixture
def digit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


@pytest.fixture(scope="module")
def page():
    pytest.importorskip("gradio")
    from patchnets.demo import page

    return page


@pytest.fixture(scope="module")
def contacted():
    """The hosts that this process looked up or connected to from now on."""
    hosts = []

    def hook(event, arguments):
        if event == "socket.getaddrinfo":
            hosts.append(arguments[0])
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            hosts.append(arguments[1][0])

    sys.addaudithook(hook)
    return hosts


@pytest.fixture(scope="module")
def address(page, trained, contacted):
    """Where the page is served, in threads of this process."""
    served = page.build(patchnets.load(trained))
    _, address, _ = page.serve(served, "127.0.0.1", None, prevent_thread_lock=True)
    yield address.rstrip("/")
    served.close(verbose=False)


def test_the_client_gets_what_the_model_says_and_one_line_for_what_is_no_image(address, trained, digit, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    label, plain, heat, message = client.predict(handle_file(digit), api_name="/classify")
    ((expected, probability), *_) = patchnets.load(trained).predict(digit)[0]
    assert label["label"] == expected
    assert label["confidences"][0]["confidence"] == pytest.approx(probability, rel=1e-5)
    for path in (plain, heat):
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.size == (256, 256)
    (tmp_path / "broken.png").write_bytes(b"no image")
    *pictures, message = client.predict(handle_file(tmp_path / "broken.png"), api_name="/classify")
    assert not any(pictures)
    assert message["value"] == "This file cannot be decoded (Pillow does not know its format)."


def test_the_server_contacts_no_other_host(address, contacted):
    with urllib.request.urlopen(f"{address}/config", timeout=30) as response:
        assert response.status == 200
    assert "127.0.0.1" in contacted, "this connection, which shows that others would be noticed"
    assert {str(host) for host in contacted} <= {"127.0.0.1", "localhost", "::1", "None", "0.0.0.0"}


def test_the_page_is_forbidden_to_load_anything_from_elsewhere(address):
    """Its template names scripts and fonts of CDNs; the browser is told to refuse them."""
    with urllib.request.urlopen(f"{address}/", timeout=30) as response:
        policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert set(policy) >= {"default-src", "script-src", "style-src", "font-src", "img-src", "connect-src"}
    allowed = {source for sources in policy.values() for source in sources.split()}
    assert allowed <= {"'self'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}


def test_large_files_are_refused(address, page):
    limit = 20 * 1024**2 if page.MAX_FILE_SIZE == "20mb" else 0
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body += bytes(limit + 1000) + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{address}/gradio_api/upload", body, headers)
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    assert error.value.code == 413


def test_an_image_is_answered_as_the_model_does(page, trained, digit):
    model = patchnets.load(trained)
    classes, plain, heat = page.classify(model, str(digit))
    (expected,) = model.predict(digit)
    assert list(classes.items()) == expected
    decoded = model.preprocess(digit)[0]
    levels = np.asarray(decoded) * model.spec.std + model.spec.mean
    np.testing.assert_allclose(np.asarray(plain)[::32, ::32, :1], levels, atol=0.51)
    np.testing.assert_array_equal(heat, overlay.blend(np.asarray(plain)[::32, ::32, :1], model.explain(digit)))


def test_a_file_that_is_no_image_is_answered_in_one_line(page, trained, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    *pictures, message = page.respond(patchnets.load(trained), str(tmp_path / "broken.png"))
    assert pictures == [None, None, None] and message["visible"] and "\n" not in message["value"]
    assert message["value"].startswith("This file cannot be decoded (")
    assert page.respond(patchnets.load(trained), None)[:3] == (None, None, None)


def test_whatever_goes_wrong_is_answered_in_one_line(page, trained, digit, monkeypatch):
    model = patchnets.load(trained)

    def fail(self, decoded, *arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED:\n out of memory")

    monkeypatch.setattr(type(model), "logits_of_decoded", fail)
    *pictures, message = page.respond(model, str(digit))
    assert pictures == [None, None, None] and message["visible"]
    expected = "This file cannot be classified (RuntimeError: RESOURCE_EXHAUSTED: out of memory)."
    assert message["value"] == expected


def test_files_are_deleted_after_an_hour(page, trained):
    assert page.build(patchnets.load(trained)).delete_cache == (600, 3600)


def test_the_address_is_printed_once_the_page_is_there(page, trained, monkeypatch, capsys):
    import gradio

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answers = []

    def visit(self):
        printed = capsys.readouterr().out
        with urllib.request.urlopen(printed.split()[0] + "/config", timeout=30) as response:
            answers.append((printed, response.status))
        self.close(verbose=False)

    monkeypatch.setattr(gradio.Blocks, "block_thread", visit)
    assert program.main(["demo", str(trained), f"--port={port}"]) == 0
    assert answers == [(f"http://127.0.0.1:{port}  (Ctrl-C ends it)\n", 200)]


def test_a_port_in_use_is_one_line(page, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        assert program.main(["demo", str(tmp_path), f"--port={port}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert f"cannot listen at 127.0.0.1:{port} (Address already in use); choose another --port" in printed.err


def test_without_gradio_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert program.main(["demo", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "pip install 'patchnets[demo]'" in printed.err


@pytest.fixture
def tab(page, tmp_path):
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium")
    with Chromium(program, tmp_path / "profile") as tab:
        yield tab


@pytest.mark.slow
def test_in_a_browser_an_image_is_dropped_and_its_class_appears(address, trained, digit, tab, tmp_path):
    """And nothing is requested from elsewhere."""
    ((expected, _), *_) = patchnets.load(trained).predict(digit)[0]
    tab.call("Page.navigate", url=address)
    tab.wait_for("document.querySelector('button input[type=file], input[type=file]') !== null")
    tab.drop_file(digit, "button:has(input[type=file])")
    tab.wait_for("document.querySelectorAll('img').length >= 2")
    label = tab.wait_for("(document.querySelector('[data-testid=label-output-value]') || {}).innerText")
    assert label.strip() == expected
    tab.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert len(picture.convert("L").getcolors()) > 8
    ours = (address, "data:", "blob:", "about:", "chrome:")
    assert [url for url in tab.requested if not url.startswith(ours)] == []


@pytest.mark.slow
def test_in_a_browser_a_file_that_is_no_image_is_answered_in_one_line(address, tab, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    tab.call("Page.navigate", url=address)
    tab.wait_for("document.querySelector('input[type=file]') !== null")
    tab.drop_file(tmp_path / "broken.png", "button:has(input[type=file])")
    message = (
        "[...document.querySelectorAll('textarea, input')].map(e => e.value).find(v => /cannot be decoded/.test(v))"
    )
    assert tab.wait_for(message) == "This file cannot be decoded (Pillow does not know its format)."
