"""A small stand-in for the Hugging Face Hub on the loopback interface: tests load and push for real.

It answers what `datasets` and `huggingface_hub` ask for when they list, download and upload a repository:
repo info, tree, paths-info, resolve (with ranges), create, preupload, commit. Everything is public and has
one branch, whose commit id is a hash of the files. `huggingface_hub` reads ``HF_ENDPOINT`` when it is imported,
so tests call it in a new process::

    with HubStandIn(tmp_path) as hub:
        hub.add_repo("dataset", "shop/products", folder)
        hub.run("from datasets import load_dataset; print(load_dataset('shop/products'))")

Uploaded files land in ``hub.folder("model", "user/name")``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["model", "dataset"]

REPOSITORY = Path(__file__).parent.parent


class HubStandIn:
    """Serve the repositories below `root` until the context ends."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root) / "hub"
        self.root.mkdir(parents=True, exist_ok=True)
        self.cache = Path(root) / "hub-cache"  # HF_HOME of the processes that `run` starts
        self.requests: list[str] = []  # "GET /api/..." in the order in which they came

    def __enter__(self) -> Self:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub=self))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def endpoint(self) -> str:
        """The value for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, **more: str) -> dict[str, str]:
        """Environment for a process whose Hub is this stand-in and whose cache is empty."""
        ours = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.cache),
            "HF_TOKEN": "hf_stand_in",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(REPOSITORY),
        }
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        return {**inherited, **ours, **more}

    def run(self, code: str, *arguments: str, timeout: float = 120, **environment: str) -> str:
        """Run Python `code` in a new process whose Hub is this stand-in; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def folder(self, kind: Kind, repo_id: str) -> Path:
        """Where the files of a repository lie."""
        return self.root / f"{kind}s" / repo_id

    def add_repo(self, kind: Kind, repo_id: str, folder: Path | None = None) -> Path:
        """Create a repository, with a copy of `folder` in it, and return its place."""
        place = self.folder(kind, repo_id)
        if folder is not None:
            shutil.copytree(folder, place, dirs_exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        return place


def _files(place: Path) -> dict[str, Path]:
    return {p.relative_to(place).as_posix(): p for p in sorted(place.rglob("*")) if p.is_file()}


def _blob_id(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit_id(place: Path) -> str:
    listing = "".join(f"{name} {_blob_id(file)}\n" for name, file in _files(place).items())
    return hashlib.sha1(listing.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, hub: HubStandIn) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_: object) -> None:
        """The tests' output stays quiet."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, path):
                return method(self, **{k: unquote(v) for k, v in match.groupdict().items() if v is not None})
        return self._error(404, "EntryNotFound", f"the stand-in does not know {self.command} {path}")

    # ---- repositories

    def whoami(self) -> None:
        auth = {"type": "access_token", "accessToken": {"displayName": "stand-in", "role": "write"}}
        self._json({"type": "user", "name": "user", "orgs": [], "auth": auth})

    def validate_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo_id = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        kind: Kind = wanted.get("type") or "model"
        url = f"{self.hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        existed = self.hub.folder(kind, repo_id).is_dir()
        self.hub.add_repo(kind, repo_id)
        self._json({"url": url, "name": repo_id}, status=409 if existed else 200)

    def info(self, kind: Kind, repo_id: str, revision: str = "main") -> None:
        if place := self._place(kind, repo_id, revision):
            names = [{"rfilename": name} for name in _files(place)]
            info = {"id": repo_id, "sha": _commit_id(place), "private": False, "tags": [], "siblings": names}
            self._json({**info, "gated": False, "disabled": False, "downloads": 0, "likes": 0})

    # ---- reading

    def tree(self, kind: Kind, repo_id: str, revision: str, path: str = "") -> None:
        place = self._place(kind, repo_id, revision)
        if place is None:
            return
        if not (place / path).is_dir():
            return self._error(404, "EntryNotFound", f"no folder {path!r}")
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("1", "true")
        found = sorted((place / path).rglob("*") if recursive else (place / path).iterdir())
        self._json([self._entry(place, p) for p in found])

    def paths_info(self, kind: Kind, repo_id: str, revision: str) -> None:
        if place := self._place(kind, repo_id, revision):
            if "json" in self.headers.get("Content-Type", ""):
                wanted = json.loads(self.body)["paths"]
            else:
                wanted = parse_qs(self.body.decode()).get("paths", [])
            wanted = [wanted] if isinstance(wanted, str) else wanted
            self._json([self._entry(place, place / p) for p in wanted if (place / p).exists()])

    def resolve(self, repo_id: str, revision: str, path: str, kind: Kind = "model") -> None:
        place = self._place(kind, repo_id, revision)
        if place is None:
            return
        file = place / path
        commit = {"X-Repo-Commit": _commit_id(place)}
        if not file.is_file():
            return self._error(404, "EntryNotFound", f"no file {path!r}", commit)
        content = file.read_bytes()
        headers = {"ETag": f'"{_blob_id(file)}"', "Accept-Ranges": "bytes", **commit}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._send(206, content[first : last + 1], "application/octet-stream", headers)
        return self._send(200, content, "application/octet-stream", headers)

    # ---- writing

    def preupload(self, kind: Kind, repo_id: str, revision: str) -> None:
        if self._place(kind, repo_id, revision):
            files = [f["path"] for f in json.loads(self.body)["files"]]
            # "regular" for every size: the content then comes within the commit, without a second store.
            self._json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]})

    def commit(self, kind: Kind, repo_id: str, revision: str) -> None:
        place = self._place(kind, repo_id, revision)
        if place is None:
            return
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                target = place / value["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(value["content"]))
            elif key == "deletedFile":
                (place / value["path"]).unlink()
            elif key == "deletedFolder":
                shutil.rmtree(place / value["path"])
        oid = _commit_id(place)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # ---- parts

    def _place(self, kind: Kind, repo_id: str, revision: str) -> Path | None:
        """The repository's folder, or None after an error was answered."""
        place = self.hub.folder(kind, repo_id)
        if not place.is_dir():
            self._error(404, "RepoNotFound", "Repository not found")
        elif revision not in ("main", _commit_id(place)):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return place
        return None

    @staticmethod
    def _entry(place: Path, path: Path) -> dict[str, Any]:
        name = path.relative_to(place).as_posix()
        if path.is_dir():
            return {
                "type": "directory",
                "path": name,
                "size": 0,
                "oid": hashlib.sha1(name.encode()).hexdigest(),
            }
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _blob_id(path)}

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", {})

    def _error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self._send(status, json.dumps({"error": message}).encode(), "application/json", headers)

    def _send(self, status: int, content: bytes, kind: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


_REPO = r"(?P<repo_id>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>model|dataset)s/{_REPO}"
_ROUTES: list[tuple[str, Any]] = [
    (r"/api/whoami-v2", _Handler.whoami),
    (r"/api/validate-yaml", _Handler.validate_yaml),
    (r"/api/repos/create", _Handler.create),
    (rf"{_API}(?:/revision/(?P<revision>[^/]+))?", _Handler.info),
    (rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.tree),
    (rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (rf"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (rf"/(?P<kind>dataset)s/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    (rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
