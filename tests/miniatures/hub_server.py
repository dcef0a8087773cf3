"""A small hub on loopback for tests: repositories that the client libraries create, push to and pull from.

It speaks as much of the Hub's protocol as `huggingface_hub` and `datasets` use with Xet switched off: small files are
part of a commit, large ones go over LFS. Their bytes live at another origin, which refuses a request that carries the
user's token. Everything is in memory and gone with the `with` block. A pass shows that the clients are satisfied.

    with hub_server() as hub:
        hub.run("from huggingface_hub import HfApi; HfApi().create_repo('tester/a', repo_type='dataset')")
        hub.files("tester/a")
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


USER, TOKEN = "tester", "hf_token_of_the_tests"


class Refusal(Exception):
    """An answer other than 2xx; its arguments are the status, the Hub's name of the error, and a message."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a repository: its bytes, and whether they went over LFS."""

    data: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def description(self, path: str) -> dict:
        told = {"type": "file", "path": path, "size": len(self.data), "oid": self.git_id}
        lfs = {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}
        return told | {"lfs": lfs} if self.is_large else told


@dataclass
class Repository:
    """Commits by their id, each with all its files, and the branches that point to them."""

    kind: str
    name: str
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"

    def commit(self, branch: str, files: dict[str, StoredFile]) -> str:
        text = f"{self.kind} {self.name} {len(self.commits)} {sorted((p, f.git_id) for p, f in files.items())}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, StoredFile]]:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"no revision {revision} in {self.name}")
        return sha, self.commits[sha]


class Hub:
    """The running server, as a test sees it.

    `endpoint` is what `HF_ENDPOINT` has to be, `environment` a whole environment for a new process with fresh caches,
    `requests` what was asked so far (`"GET /api/..."`, storage with its origin). Set `cut` to a number of bytes to have
    the storage send only so many of each file, as a connection that breaks.
    """

    def __init__(self, home: Path):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut: int | None = None
        self.lock = threading.RLock()
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (_ApiHandler, _StorageHandler)]
        for server in self.servers:
            server.daemon_threads, server.hub = True, self
        self.endpoint = f"http://127.0.0.1:{self.servers[0].server_port}"
        # another host name and another port: a client that takes the token along would be refused
        self.storage = f"http://localhost:{self.servers[1].server_port}"
        self.environment = self._environment(home)

    def _environment(self, home: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
        }

    def repository(self, name: str, kind: str = "dataset") -> Repository:
        if (kind, name) not in self.repositories:
            raise Refusal(404, "RepoNotFound", f"no {kind} {name}")
        return self.repositories[kind, name]

    def files(self, name: str, revision: str = "main", kind: str = "dataset") -> dict[str, bytes]:
        """Paths and bytes of a repository."""
        return {path: file.data for path, file in self.repository(name, kind).at(revision)[1].items()}

    def put(self, name: str, path: str, data: bytes, kind: str = "dataset") -> None:
        """Put a file there without a client, over LFS; the repository is made."""
        repository = self.repositories.setdefault((kind, name), Repository(kind, name))
        files = repository.commits.get(repository.branches.get("main", ""), {})
        self.blobs[hashlib.sha256(data).hexdigest()] = data
        repository.commit("main", files | {path: StoredFile(data, is_large=True)})

    def run(self, code: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in a fresh process that knows this hub only."""
        options = {"env": self.environment | environment, "capture_output": True, "text": True, "timeout": timeout}
        return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], **options)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Start a hub with no repository in it, and stop it at the end of the block."""
    with tempfile.TemporaryDirectory() as home:
        hub = Hub(Path(home))
        threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in hub.servers]
        for thread in threads:
            thread.start()
        try:
            yield hub
        finally:
            for server, thread in zip(hub.servers, threads, strict=True):
                server.shutdown()
                thread.join()
                server.server_close()


# HTTP ---------------------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # otherwise each answer waits for the acknowledgement of its head
    disable_nagle_algorithm = True
    origin = ""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.hub.requests.append(f"{self.command} {self.origin}{self.path}")
        try:
            with self.server.hub.lock:
                self.answer(body)
        except Refusal as refusal:
            status, name, message = refusal.args
            headers = {"X-Error-Code": name, "X-Error-Message": message}
            self.send(json.dumps({"error": message}).encode(), headers, status)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def send(self, data: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        """Send an answer; without a length among its headers it has that of the data."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_range(self, data: bytes, headers: dict[str, str]) -> None:
        """Send a file or the part of it that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.send(data, headers | {"Accept-Ranges": "bytes"})
        start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        if start >= len(data):
            raise Refusal(416, "InvalidRange", f"{len(data)} bytes are there")
        self.send(data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, 206)


class _StorageHandler(_Handler):
    """Bytes of large files, by their SHA-256."""

    @property
    def origin(self) -> str:
        return self.server.hub.storage

    def answer(self, body: bytes) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "TokenLeaked", "the token was sent to another origin")
        oid = self.path.removeprefix("/lfs/")
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                raise Refusal(400, "WrongContent", f"the bytes are not those of {oid}")
            self.server.hub.blobs[oid] = body
            self.send(b"")
        elif oid not in self.server.hub.blobs:
            raise Refusal(404, "EntryNotFound", f"no object {oid}")
        else:
            self.send_range(self.server.hub.blobs[oid][: self.server.hub.cut], {"ETag": f'"{oid}"'})


class _ApiHandler(_Handler):
    """Everything but the bytes of large files."""

    def answer(self, body: bytes) -> None:
        url = urlsplit(self.path)
        for method, pattern, function in _ROUTES:
            found = re.fullmatch(pattern, url.path)
            if found and self.command in method.split():
                groups = {name: unquote(value or "") for name, value in found.groupdict().items()}
                if self.command == "POST":
                    self.check_token()
                if "name" in groups:
                    groups["repository"] = self.server.hub.repository(
                        groups.pop("name"), groups.pop("kind") or "model"
                    )
                if function is _resolve:
                    self.send_file(*_resolve(self.server.hub, **groups))
                else:
                    asked = {"recursive": "recursive=true" in url.query.lower()} if function is _tree else {}
                    self.send(json.dumps(function(self.server.hub, body, **groups, **asked)).encode())
                return
        raise Refusal(404, "EntryNotFound", f"nothing at {self.path}")

    def check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized", "Invalid username or password.")

    def send_file(self, sha: str, file: StoredFile) -> None:
        headers = {"X-Repo-Commit": sha}
        if not file.is_large:
            return self.send_range(file.data, headers | {"ETag": f'"{file.git_id}"'})
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        self.send(b"", headers | linked | {"Location": f"{self.server.hub.storage}/lfs/{file.sha256}"}, 302)


# What the API answers: the hub, the body and what stands in the address in, JSON out --------------------------------


def _create_repository(hub: Hub, body: bytes) -> dict:
    asked = json.loads(body)
    kind, name = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
    if (kind, name) in hub.repositories:
        raise Refusal(409, "RepoExists", "You already created this repo")
    hub.repositories[kind, name] = Repository(kind, name)
    hub.repositories[kind, name].commit("main", {})
    return {"url": f"{hub.endpoint}/{hub.repositories[kind, name].place}", "id": name, "name": name}


def _create_branch(hub: Hub, body: bytes, repository: Repository, revision: str) -> dict:
    if revision in repository.branches:
        raise Refusal(409, "RefExists", f"branch {revision} exists")
    repository.branches[revision] = repository.at(json.loads(body or b"{}").get("startingPoint") or "main")[0]
    return {}


def _info(hub: Hub, body: bytes, repository: Repository, revision: str = "") -> dict:
    sha, files = repository.at(revision or "main")
    told = {"id": repository.name, "sha": sha, "private": False, "gated": False, "disabled": False, "tags": []}
    return told | {
        "lastModified": "2026-01-01T00:00:00.000Z",
        "siblings": [{"rfilename": path} for path in sorted(files)],
    }


def _described(files: dict[str, StoredFile]) -> dict[str, dict]:
    """Files and the folders above them, by path."""
    told = {path: file.description(path) for path, file in files.items()}
    for folder in {str(parent) for path in files for parent in list(Path(path).parents)[:-1]}:
        oid = hashlib.sha1(folder.encode()).hexdigest()
        told[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
    return {path: told[path] for path in sorted(told)}


def _tree(
    hub: Hub, body: bytes, repository: Repository, revision: str, path: str = "", recursive: bool = False
) -> list:
    told = _described(repository.at(revision)[1])
    if path and told.get(path, {}).get("type") != "directory":
        raise Refusal(404, "EntryNotFound", f"no folder {path}")
    start = f"{path}/" if path else ""
    below = [other for other in told if other.startswith(start)]
    return [told[other] for other in below if recursive or "/" not in other.removeprefix(start)]


def _paths_info(hub: Hub, body: bytes, repository: Repository, revision: str) -> list:
    told = _described(repository.at(revision)[1])
    return [told[path] for path in parse_qs(body.decode()).get("paths", []) if path in told]


def _preupload(hub: Hub, body: bytes, repository: Repository, revision: str) -> dict:
    there = repository.at(revision)[1]
    return {"files": [_upload_mode(file, there.get(file["path"])) for file in json.loads(body)["files"]]}


def _upload_mode(file: dict, there: StoredFile | None) -> dict:
    is_large = b"\0" in base64.b64decode(file["sample"])
    told = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
    # by this the client sees that nothing would change
    return told | ({"oid": there.sha256 if there.is_large else there.git_id} if there else {})


def _lfs_batch(hub: Hub, body: bytes, repository: Repository) -> dict:
    return {"transfer": "basic", "objects": [_lfs_object(hub, asked) for asked in json.loads(body)["objects"]]}


def _lfs_object(hub: Hub, asked: dict) -> dict:
    told = {"oid": asked["oid"], "size": asked["size"]}
    if asked["oid"] in hub.blobs:
        return told
    upload, verify = {"href": f"{hub.storage}/lfs/{asked['oid']}"}, {"href": f"{hub.endpoint}/api/lfs-verify"}
    return told | {"actions": {"upload": upload, "verify": verify}}


def _lfs_verify(hub: Hub, body: bytes) -> dict:
    if json.loads(body)["oid"] not in hub.blobs:
        raise Refusal(404, "EntryNotFound", "the object was not uploaded")
    return {}


def _commit(hub: Hub, body: bytes, repository: Repository, revision: str) -> dict:
    sha, before = repository.at(revision)
    files = dict(before)
    for line in map(json.loads, body.splitlines()):
        if line["key"] == "header":
            if line["value"].get("parentCommit", sha) != sha:
                raise Refusal(412, "PreconditionFailed", "the branch has moved on")
        else:
            _change(hub, files, line["key"], line["value"])
    sha = repository.commit(revision, files)
    return {"success": True, "commitOid": sha, "commitUrl": f"{hub.endpoint}/{repository.place}/commit/{sha}"}


def _change(hub: Hub, files: dict[str, StoredFile], what: str, value: dict) -> None:
    if what == "file":
        files[value["path"]] = StoredFile(base64.b64decode(value["content"]), is_large=False)
    elif what == "lfsFile":
        if value["oid"] not in hub.blobs:
            raise Refusal(400, "BadCommit", f"object {value['oid']} of {value['path']} was not uploaded")
        files[value["path"]] = StoredFile(hub.blobs[value["oid"]], is_large=True)
    elif what in ("deletedFile", "deletedFolder"):
        path = value["path"].rstrip("/")
        for other in [other for other in files if other == path or other.startswith(f"{path}/")]:
            del files[other]
    else:
        raise Refusal(400, "BadCommit", f"what is {what}?")


def _resolve(hub: Hub, repository: Repository, revision: str, path: str) -> tuple[str, StoredFile]:
    sha, files = repository.at(revision)
    if path not in files:
        raise Refusal(404, "EntryNotFound", f"no file {path} in {repository.name} at {revision}")
    return sha, files[path]


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_REPOSITORY = rf"/api/(?P<kind>model|dataset|space)s/{_NAME}"
_PLACE = rf"/(?:(?P<kind>dataset|space)s/)?{_NAME}"
_ROUTES: list[tuple[str, str, Callable]] = [
    ("GET", r"/api/whoami-v2", lambda hub, body: {"type": "user", "name": USER, "orgs": []}),
    ("POST", r"/api/repos/create", _create_repository),
    ("POST", r"/api/validate-yaml", lambda hub, body: {"errors": [], "warnings": []}),
    ("POST", r"/api/lfs-verify", _lfs_verify),
    ("GET", _REPOSITORY, _info),
    ("GET", _REPOSITORY + r"/revision/(?P<revision>[^/]+)", _info),
    ("GET", _REPOSITORY + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _tree),
    ("POST", _REPOSITORY + r"/paths-info/(?P<revision>[^/]+)", _paths_info),
    ("POST", _REPOSITORY + r"/preupload/(?P<revision>[^/]+)", _preupload),
    ("POST", _REPOSITORY + r"/branch/(?P<revision>[^/]+)", _create_branch),
    ("POST", _REPOSITORY + r"/commit/(?P<revision>[^/]+)", _commit),
    ("POST", _PLACE + r"\.git/info/lfs/objects/batch", _lfs_batch),
    ("GET HEAD", _PLACE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
]
