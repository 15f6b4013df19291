"""A hub on 127.0.0.1 with the routes of Hugging Face and of ModelScope that downloads use."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

HUBS = [
    "hf",
    pytest.param(
        "modelscope",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("modelscope_hub") is None,
            reason="no modelscope_hub: pip install -e '.[modelscope]'",
        ),
    ),
]
"""The hubs whose client is installed, as parameters of a test."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Files = dict[str, bytes]


@dataclass
class FakeHub:
    """`repos` maps `models/OWNER/NAME` or `datasets/OWNER/NAME` to files.

    gated: repositories that answer with this status; broken: every answer is this web page;
    lost: files that are listed, but not there.
    """

    repos: dict[str, Files]
    gated: dict[str, int] = field(default_factory=dict[str, int])
    lost: set[str] = field(default_factory=set[str])
    broken: bytes | None = None
    served: list[str] = field(default_factory=list[str])
    url: str = ""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """`hub` at `hub.url` while the block runs."""

    class Handler(_Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self.fake.broken is not None:
            self.answer(200, self.fake.broken, kind="text/html")
        elif url.path.startswith(("/api/v1/", "/openapi/")):
            self.modelscope(url.path, {key: v[0] for key, v in parse_qs(url.query).items()})
        elif url.path.startswith("/api/"):
            self.hugging_face_api(url.path.removeprefix("/api/").split("/"))
        else:
            parts = url.path.strip("/").split("/")
            parts = parts if parts[0] == "datasets" else ["models", *parts]
            self.file("/".join(parts[:3]), "/".join(parts[5:]))

    def hugging_face_api(self, parts: list[str]) -> None:
        name, action = "/".join(parts[:3]), parts[3:4]
        if (files := self.files_of(name)) is None:
            return
        if action == ["tree"]:
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": _sha(data)}
                for path, data in files.items()
            ]
            self.answer(200, json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": path} for path in files]
            repo = {"id": name.partition("/")[2], "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(repo).encode())

    def modelscope(self, path: str, query: dict[str, str]) -> None:
        parts = path.removeprefix("/api/v1/").removeprefix("/openapi/v1/").split("/")
        name, action = "/".join(parts[:3]), "/".join(parts[3:])
        if action == "repo":
            self.file(name, query["FilePath"])
        elif (files := self.files_of(name)) is not None:
            listed = [
                {"Path": path, "Type": "blob", "Size": len(data), "Sha256": _sha(data)}
                for path, data in files.items()
            ]
            self.answer(200, json.dumps({"Code": 200, "Data": {"Files": listed}}).encode())

    def files_of(self, name: str) -> Files | None:
        """The files, or None once 404 or 403 is answered."""
        if name in self.fake.gated:
            self.answer(self.fake.gated[name], b'{"Message": "gated"}', error="GatedRepo")
        elif name not in self.fake.repos:
            self.answer(404, b'{"Message": "not found"}', error="RepoNotFound")
        else:
            return self.fake.repos[name]
        return None

    def file(self, name: str, path: str) -> None:
        if (files := self.files_of(name)) is None:
            return
        if path not in files or path in self.fake.lost:
            self.answer(404, b"{}", error="EntryNotFound")
            return
        if self.command == "GET":
            self.fake.served.append(path)
        data = files[path]
        self.answer(200, data, kind="application/octet-stream", etag=_sha(data))

    def answer(
        self,
        status: int,
        body: bytes,
        *,
        kind: str = "application/json",
        etag: str | None = None,
        error: str | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
