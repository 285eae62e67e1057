"""A stand-in for the Hugging Face hub at the network's edge: repositories in memory, over HTTP."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "0" * 40


class Hub:
    """Attributes:
    repos: (kind, OWNER/NAME) -> path -> bytes.
    made: the bodies of requests that made a repository.
    read: paths of files that were fetched.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.made: list[dict[str, Any]] = []
        self.read: list[str] = []
        self.url = ""


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", kind: str = "application/json", **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def say(self, status: int, value: Any, **headers: str) -> None:
            self.answer(status, json.dumps(value).encode(), **headers)

        def missing(self) -> None:
            self.say(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

        def file(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            kind = "dataset" if parts[0] == "datasets" else "model"
            parts = parts[1:] if kind == "dataset" else parts
            name, path = "/".join(parts[:2]), "/".join(parts[4:])
            data = state.repos.get((kind, name), {}).get(path)
            if data is None:
                self.missing()
                return
            if self.command == "GET":
                state.read.append(path)
            etag = hashlib.sha256(data).hexdigest()
            self.answer(200, data, "application/octet-stream", ETag=f'"{etag}"', X_Repo_Commit=SHA)

        def do_HEAD(self) -> None:
            self.file()

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[0] != "api":
                self.file()
                return
            kind, name = parts[1].removesuffix("s"), "/".join(parts[2:4])
            files = state.repos.get((kind, name))
            if files is None:
                self.missing()
                return
            siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
            if "tree" in parts:
                self.say(200, [{"type": "file", "path": p, "size": len(d), "oid": SHA} for p, d in files.items()])
                return
            self.say(200, {"id": name, "_id": "1", "sha": SHA, "siblings": siblings, "private": False, "tags": [],
                           "downloads": 0, "likes": 0})  # fmt: skip

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = self.path.split("?")[0].strip("/").split("/")
            if self.path.endswith("/repos/create"):
                told = json.loads(body)
                state.made.append(told)
                kind = told.get("type") or "model"
                owner = f"{told['organization']}/" if told.get("organization") else ""
                name = f"{owner}{told['name']}"
                state.repos.setdefault((kind, name), {})
                place = "datasets/" if kind == "dataset" else ""
                self.say(200, {"url": f"{state.url}/{place}{name}"})
                return
            if self.path.split("?")[0].endswith("validate-yaml"):
                self.say(200, {"errors": [], "warnings": []})
                return
            kind, name = parts[1].removesuffix("s"), "/".join(parts[2:4])
            if (kind, name) not in state.repos:
                self.missing()
            elif "preupload" in parts:
                told = json.loads(body)
                files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in told["files"]]
                self.say(200, {"files": files})
            elif "commit" in parts:
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        state.repos[kind, name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                self.say(200, {"success": True, "commitOid": SHA, "commitUrl": f"{state.url}/{name}/commit/{SHA}",
                               "pullRequestUrl": None, "hookOutput": ""})  # fmt: skip
            else:
                self.missing()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
