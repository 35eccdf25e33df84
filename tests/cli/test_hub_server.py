"""rism push and --bundle owner/name, with a server that speaks the hub's HTTP on this machine."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from rism.runtime.bundle.reader import Bundle
from tests.cli.conftest import invoke
from tests.paths import MINI, ROOT, STREET

pytest.importorskip("huggingface_hub")
COMMIT = "d" * 40


class Hub(BaseHTTPRequestHandler):
    """One repository, me/mini, of plain files: what a commit brings, a download finds."""

    files: ClassVar[dict[str, bytes]] = {}
    private: ClassVar[bool] = False
    asked: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/me/mini/tree/"):
            self._answer([
                {"type": "file", "path": name, "size": len(data), "oid": _git_hash(data)}
                for name, data in self.files.items()
            ])  # fmt: skip
        elif path.startswith("/api/models/me/mini"):
            names = [{"rfilename": name} for name in self.files]
            about = {"id": "me/mini", "sha": COMMIT, "private": self.private}
            self._answer({**about, "siblings": names})
        elif path.startswith("/me/mini/resolve/") and path.split("/", 5)[5] in self.files:
            data = self.files[path.split("/", 5)[5]]
            self._answer(data, {"ETag": f'"{_git_hash(data)}"', "X-Repo-Commit": COMMIT})
        else:
            self._answer({"error": "not found"}, {"X-Error-Code": "RepoNotFound"}, code=404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.asked.append(self.path)
        body = self._body()
        if self.path == "/api/repos/create":
            if not self.files:
                type(self).private = json.loads(body).get("private") or False
            self._answer({"url": f"http://{self.headers['Host']}/me/mini"})
        elif "/preupload/" in self.path:
            named = [each["path"] for each in json.loads(body)["files"]]
            told = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in named]
            self._answer({"files": told})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/me/mini/commit/{COMMIT}"
            self._answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, found: object, headers: dict[str, str] | None = None, *, code: int = 200
    ) -> None:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    yield {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_TOKEN": "hf_of_nobody",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    server.shutdown()
    server.server_close()


def rism(env: dict[str, str], cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rism", *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=900)


def test_what_is_pushed_is_run_from_the_hub(environment: dict[str, str], tmp_path: Path) -> None:
    bundle = shutil.copytree(MINI, tmp_path / "bundle")
    (bundle / "notes.txt").write_text("mine")
    pushed = rism(environment, tmp_path, "push", str(bundle), "me/mini")
    assert pushed.returncode == 0, pushed.stderr
    assert f"--bundle me/mini@{COMMIT}" in pushed.stderr
    assert Hub.files.keys() == {"README.md", "manifest.json", *Bundle.open(bundle).manifest.files}
    card = Hub.files["README.md"].decode()
    assert "Apache-2.0" in card and "--bundle me/mini" in card and "built-in" in card
    question = ["run", str(STREET), "the green van", "--provider", "cpu"]
    shown = rism(environment, tmp_path, *question, "--json", "--bundle", f"me/mini@{COMMIT}")
    assert shown.returncode == 0, shown.stderr
    expected = json.loads(invoke(*question, "--json").stdout)
    assert json.loads(shown.stdout)[0]["rle"] == expected[0]["rle"]
    missing = rism(environment, tmp_path, *question, "--bundle", "me/other")
    assert missing.returncode == 1
    assert "'me/other' is no folder here and cannot be had from the model hub" in missing.stderr
    again = rism(environment, tmp_path, "push", str(bundle), "me/mini", "--private")
    assert again.returncode == 1 and "me/mini exists and is public" in again.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("tokenizer.json", b"{", b"{ ", "tokenizer.json"),
        ("manifest.json", b"Apache-2.0", b"FLUX Non-Commercial", "--licence-allows"),
    ],
)
def test_push_refuses_before_anything_leaves(
    environment: dict[str, str], tmp_path: Path, file: str, old: bytes, new: bytes, why: str
) -> None:
    bundle = shutil.copytree(MINI, tmp_path / "bundle")
    changed = (bundle / file).read_bytes().replace(old, new, 1)
    (bundle / file).write_bytes(changed)
    assert why in invoke("push", bundle, "me/mini", code=1).stderr
    assert not Hub.asked
