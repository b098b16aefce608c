"""As much of the Hugging Face hub's HTTP interface as pushing, tagging and fetching small models takes, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories as {name: {revision or tag: {path: bytes}}}."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.commits: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _repo(self, parts: list[str]) -> str:
        return "/".join(parts[2:4])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.strip("/").split("/")
        if "Bearer hf_writes" not in self.headers.get("Authorization", ""):
            return self._answer({"error": "Invalid username or password."}, 401)
        if parts[:3] == ["api", "repos", "create"]:
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}" if said.get("organization") else said["name"]
            self.server.repos.setdefault(name, {"main": {}})
            return self._answer({"url": f"{self.server.url}/{name}", "name": name})
        if parts[:2] == ["api", "validate-yaml"]:
            return self._answer({"errors": [], "warnings": []})
        repo = self._repo(parts)
        if parts[4] == "preupload":
            asked = json.loads(body)["files"]
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            return self._answer({"files": files})
        if parts[4] == "commit":
            files = self.server.repos[repo]["main"]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
            self.server.commits[repo] = oid
            return self._answer(
                {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"}
            )
        if parts[4] == "tag":
            self.server.repos[repo][json.loads(body)["tag"]] = dict(self.server.repos[repo]["main"])
            return self._answer({})
        return self._answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("?")[0].split("/")
        if parts[0] != "api":
            repo, revision, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            known = self.server.repos.get(repo, {})
            data = self._at(known, repo, revision).get(path)
            if data is None:
                return self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            etag = hashlib.sha1(data).hexdigest()
            return self._answer(data, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": self._commit(repo, revision)})
        repo = self._repo(parts)
        if repo not in self.server.repos:
            return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if parts[4:5] == ["refs"]:
            tags = [
                {"name": n, "ref": f"refs/tags/{n}", "targetCommit": "0"}
                for n in self.server.repos[repo]
                if n != "main"
            ]
            return self._answer({"branches": [], "converts": [], "tags": tags})
        revision = parts[5] if parts[4:5] in (["revision"], ["tree"]) else "main"
        files = self._at(self.server.repos[repo], repo, revision)
        if not files:
            return self._answer({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if parts[4] == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
            return self._answer(entries)
        siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
        return self._answer({"id": repo, "sha": self._commit(repo, revision), "siblings": siblings, "tags": []})

    do_HEAD = do_GET

    def _commit(self, repo: str, revision: str) -> str:
        known = self.server.repos[repo]
        return revision if revision not in known else hashlib.sha1(f"{repo} {revision}".encode()).hexdigest()

    def _at(self, known: dict[str, dict[str, bytes]], repo: str, revision: str) -> dict[str, bytes]:
        by_commit = {self._commit(repo, name): files for name, files in known.items()}
        return known.get(revision) or by_commit.get(revision) or {}
