"""A web server on the loopback that misbehaves on demand, and speaks as much of the hub as a data set needs.

``server.files`` holds what it serves. ``server.fail(path, ...)`` queues what happens to the next requests of a path
for a body: "429" (with Retry-After where a number follows, as in "429:0"), any other status, "stall" (half a body, then
silence), "cut" (half a body under the right length, then the connection ends), "flip" (one bit), "hang up". The path
may begin with "HEAD ", for requests for the headers alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import defaultdict
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: Files of a hub data set from this size on are kept apart (LFS), with a sha256, behind a signed address.
LARGE = 1000
#: What a test puts into tokens and queries, to look for it in messages.
SECRET = "TOPSECRET"


def online(server: Server) -> dict[str, str]:
    """What a process's environment needs for this server to be its hub, whatever the tests' own says."""
    return {"HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Server:
    """Serves from a thread until ``close``. ``requests`` is what was asked: (method, path, headers)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.data_sets: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, Message]] = []
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.ranges = True
        self.token: str | None = None
        self.page = 1000
        self.closing = threading.Event()
        self.large: Server = self
        server = self

        class Handler(_Handler):
            site = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        """Stop, and let go of whoever is stalled."""
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def fail(self, path: str, *faults: str) -> None:
        """Queue what happens to the next requests for the body at ``path``."""
        self.faults[path] += faults

    def bodies(self, path: str) -> int:
        """How often the body at ``path``, or a part of it, was asked for."""
        return sum(1 for method, asked, _ in list(self.requests) if (method, urlsplit(asked).path) == ("GET", path))

    def wait_for_body(self, path: str, seconds: float = 20) -> None:
        """Until the body at ``path`` is asked for; fails, with what was asked for instead, when it is not."""
        end = time.monotonic() + seconds
        while not self.bodies(path):
            asked = [f"{method} {target}" for method, target, _ in list(self.requests)]
            assert time.monotonic() < end, f"{path} was not asked for within {seconds} s; asked for were {asked}"
            time.sleep(0.005)


class _Handler(BaseHTTPRequestHandler):
    site: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve("HEAD ")

    def do_GET(self) -> None:
        self._serve("")

    def _serve(self, method: str) -> None:
        faults = self.site.faults[method + unquote(urlsplit(self.path).path)]
        fault = faults.pop(0) if faults else ""
        site = self.site
        site.requests.append((self.command, self.path, self.headers))
        path = unquote(urlsplit(self.path).path)
        if fault == "hang up":
            self.close_connection = True
        elif fault[:1].isdigit():
            status, _, seconds = fault.partition(":")
            self._send(int(status), b"no", {"Retry-After": seconds} if seconds else {})
        elif path.startswith("/api/datasets/"):
            self._api(path)
        elif path.startswith("/datasets/"):
            self._resolve(path, fault)
        elif path in site.files:
            self._body(path, site.files[path], fault)
        elif path.endswith("/") and any(name.startswith(path) for name in site.files):
            inside = {name.removeprefix(path).partition("/")[:2] for name in site.files if name.startswith(path)}
            links = "".join(f'<a href="{first}{slash}">{first}</a>\n' for first, slash in sorted(inside))
            self._send(200, links.encode(), {"Content-Type": "text/html"})
        elif any(name.startswith(f"{path}/") for name in site.files):
            self._send(301, b"", {"Location": f"{path}/"})
        else:
            self._send(404, b"no")

    def _body(self, path: str, data: bytes, fault: str) -> None:
        etag = self.site.etags.get(path, f'"{hashlib.md5(data).hexdigest()}"')
        headers = {"ETag": etag, "Content-Type": "application/octet-stream"}
        status = 200
        wanted = self.headers.get("Range")
        if self.site.ranges and wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[int(first) : int(last) + 1], 206
        if fault == "flip":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self._send(status, data, headers, fault)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, fault: str = "") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("cut", "stall"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.site.closing.wait(30)
            self.close_connection = True
        else:
            # A client that wanted a part alone hangs up.
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data)

    def _admitted(self) -> bool:
        token = self.site.token
        if token is None or self.headers.get("Authorization") == f"Bearer {token}":
            return True
        status = 403 if self.headers.get("Authorization") else 401
        self._send(status, b"no", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        return False

    def _api(self, path: str) -> None:
        """/api/datasets/OWNER/NAME[/revision/REVISION] and /api/datasets/OWNER/NAME/tree/COMMIT"""
        name = "/".join(path.split("/")[3:5])
        files = self.site.data_sets.get(name)
        if files is None:
            self._send(404, b"no", {"X-Error-Code": "RepoNotFound"})
        elif not self._admitted():
            pass
        elif "/tree/" in path:
            first = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
            names = sorted(files)  # As the hub does: chunk10 before chunk2.
            headers = {"Content-Type": "application/json"}
            if first + self.site.page < len(names):
                following = f"{self.site.address}{path}?recursive=true&cursor={first + self.site.page}"
                headers["Link"] = f'<{following}>; rel="next"'
            entries = [self._entry(name, files[name]) for name in names[first : first + self.site.page]]
            self._send(200, json.dumps(entries).encode(), headers)
        else:
            about = {"id": name, "sha": COMMIT, "private": False, "gated": False, "downloads": 0, "tags": []}
            self._send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    @staticmethod
    def _entry(name: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
        if len(data) >= LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _resolve(self, path: str, fault: str) -> None:
        """/datasets/OWNER/NAME/resolve/COMMIT/FILE; large files are at a signed address of another server."""
        _, _, owner, name, _, commit, inside = path.split("/", 6)
        data = self.site.data_sets.get(f"{owner}/{name}", {}).get(inside)
        if not self._admitted():
            return
        if data is None or commit != COMMIT:
            self._send(404, b"no", {"X-Error-Code": "EntryNotFound"})
        elif len(data) >= LARGE:
            large = self.site.large
            large.files[f"/large/{inside}"] = data
            self._send(302, b"", {"Location": f"{large.address}/large/{inside}?Signature=SECRET"})
        else:
            self._body(path, data, fault)
