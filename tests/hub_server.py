"""A Hub, an Ollama registry and a plain file server on 127.0.0.1, speaking the few endpoints that are used."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


@dataclass
class Repo:
    """A repository: its files at each commit, and what it says about itself."""

    files: dict[str, bytes]
    commit: str = COMMIT
    older: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private_token: str | None = None
    listed: bool = False
    license: str = "apache-2.0"
    lfs: bool = True

    def at(self, revision: str) -> dict[str, bytes] | None:
        if revision in ("main", self.commit):
            return self.files
        return self.older.get(revision)


@dataclass
class Server:
    """What the server has, and what it was asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    redirect_to: str = ""
    redirects: dict[str, str] = field(default_factory=dict)
    password: str = ""
    fail_next: list[int] = field(default_factory=list)
    pause: threading.Event | None = None
    xet_only: bool = False
    truncate_at: int | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def asked(self, fragment: str) -> list[dict[str, str]]:
        """Headers (lower-case names) of the requests whose path contains `fragment`."""
        return [headers for _, path, headers in self.requests if fragment in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.respond(body=True)

    def respond(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.world.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.world.password:
            expected = "Basic " + base64.b64encode(self.world.password.encode()).decode()
            if self.headers.get("authorization") != expected:
                self.send(401, b"", body=body)
                return
        if path in self.world.redirects:
            self.send(302, b"", {"Location": self.world.redirects[path] + path}, body=body)
            return
        if self.world.fail_next:
            self.send(self.world.fail_next.pop(0), b"busy", body=body)
            return
        if path.startswith("/api/models/"):
            self.model_info(path.removeprefix("/api/models/"), body=body)
            return
        if path.startswith("/v2/"):
            self.registry(path, body=body)
            return
        if path in self.world.files:
            self.send_bytes(self.world.files[path], {}, body=body)
            return
        if "/resolve/" in path:
            self.resolve(path, body=body)
            return
        self.send(404, b"not found", body=body)
        return

    def allowed(self, repo: Repo | None, *, body: bool) -> bool:
        if repo is None:
            self.send(401, b"", {"X-Error-Code": "RepoNotFound"}, body=body)
            return False
        given = self.headers.get("authorization")
        if repo.private_token and given != f"Bearer {repo.private_token}":
            code = "GatedRepo" if repo.gated else "RepoNotFound"
            self.send(403 if repo.gated else 401, b"", {"X-Error-Code": code}, body=body)
            return False
        return True

    def model_info(self, path: str, *, body: bool) -> None:
        name, _, revision = path.partition("/revision/")
        repo = self.world.repos.get(name)
        if repo is None or not (repo.listed or self.allowed(repo, body=body)):
            if repo is None:
                self.allowed(repo, body=body)
            return
        files = repo.at(revision or "main")
        if files is None:
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body=body)
            return
        siblings = []
        for file, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            sibling: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": digest[:40]}
            if repo.lfs:
                sibling["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        sha = revision if revision in repo.older else repo.commit
        card = {"license": repo.license}
        document = {"id": name, "modelId": name, "sha": sha, "siblings": siblings, "cardData": card, "tags": []}
        self.send(200, json.dumps(document).encode(), {"Content-Type": "application/json"}, body=body)

    def resolve(self, path: str, *, body: bool) -> None:
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        repo = self.world.repos.get(name)
        if not self.allowed(repo, body=body) or repo is None:
            return
        files = repo.at(revision)
        if files is None:
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body=body)
            return
        if file not in files:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        data = files[file]
        digest = hashlib.sha256(data).hexdigest()
        headers = {
            "X-Repo-Commit": revision if revision in repo.older else repo.commit,
            "X-Linked-Size": str(len(data)),
            "X-Linked-ETag": f'"{digest if repo.lfs else digest[:40]}"',
        }
        if self.world.xet_only:
            headers |= {"X-Xet-Hash": digest, "X-Xet-Refresh-Route": "/xet-read-token"}
            if body and self.headers.get("user-agent", "").startswith("tea-models/"):
                self.send(409, b"only through Xet", headers, body=body)
                return
        if self.world.redirect_to:
            headers["Location"] = f"{self.world.redirect_to}/cdn/{file}"
            self.send(302, b"", headers, body=body)
            return
        self.send_bytes(data, headers, body=body)

    def registry(self, path: str, *, body: bool) -> None:
        if path in self.world.manifests:
            self.send(200, self.world.manifests[path], {"Content-Type": "application/json"}, body=body)
            return
        if path in self.world.files:
            self.send_bytes(self.world.files[path], {}, body=body)
            return
        self.send(404, b'{"errors": []}', body=body)
        return

    def send_bytes(self, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"Accept-Ranges": "bytes", "ETag": etag} | headers
        status, part = 200, data
        asked = self.headers.get("range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) if last else len(data) - 1, len(data) - 1)
            if start >= len(data):
                self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, body=body)
                return
            status, part = 206, data[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self.send(status, part, headers, body=body)

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool) -> None:
        try:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not body:
                return
            if self.world.pause is not None and len(data) > 1000 and not self.world.pause.is_set():
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.world.pause.wait(20)
                data = data[len(data) // 2 :]
            if self.world.truncate_at is not None and len(data) > self.world.truncate_at:
                self.wfile.write(data[: self.world.truncate_at])
                self.wfile.flush()
                self.close_connection = True
                return
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is no news."""


@contextmanager
def serve(**content: Any) -> Iterator[Server]:
    """Run a server with this content until the block ends."""
    world = Server(**content)
    handler = type("Handler", (_Handler,), {"world": world})
    server = _Quiet(("127.0.0.1", 0), handler)
    world.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield world
    finally:
        if world.pause is not None:
            world.pause.set()
        server.shutdown()
        server.server_close()
        thread.join()
