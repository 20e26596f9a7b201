"""A small Hugging Face Hub on loopback: the routes huggingface_hub's client uses, with faults on demand.

Files of `.safetensors` are large ones: asked for, they redirect to another host name, as the real Hub does to its
storage. Faults are per repository and method, one for each request, in their order; then all goes well.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

Fault = Callable[["Handler", bytes], None]  # answers a request for this content in its own way


def status(code: int, error: str = "", message: str = "", **headers: str) -> Fault:
    """An answer without the file."""

    def answer(handler: "Handler", content: bytes) -> None:
        extra = {name: value for name, value in (("X-Error-Code", error), ("X-Error-Message", message)) if value}
        handler.reply(code, b"", {**extra, **headers})

    return answer


def flipped(handler: "Handler", content: bytes) -> None:
    """One bit is wrong."""
    handler.send_file(content[:-1] + bytes([content[-1] ^ 1]))


def cut(at: int) -> Fault:
    """The connection ends after `at` bytes."""

    def answer(handler: "Handler", content: bytes) -> None:
        handler.send_file(content, until=at)
        handler.close_connection = True

    return answer


def short(handler: "Handler", content: bytes) -> None:
    """A smaller file than was announced, and whole as such."""
    handler.reply(200, content[:-7], {})


def stalled(seconds: float, at: int = 0) -> Fault:
    """Nothing comes for a while, after `at` bytes."""

    def answer(handler: "Handler", content: bytes) -> None:
        if at:
            handler.send_file(content, until=at)
        time.sleep(seconds)
        handler.close_connection = True

    return answer


@dataclass
class Repository:
    """Commits, the newest last, each with all its files."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        """Files added to those of the last commit; returns the new commit's name."""
        everything = {**(next(reversed(self.commits.values())) if self.commits else {}), **files}
        content = b"".join(name.encode() + content for name, content in sorted(everything.items()))
        revision = hashlib.sha1(str(len(self.commits)).encode() + content).hexdigest()
        self.commits[revision] = everything
        return revision

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main" and self.commits:
            revision = next(reversed(self.commits))
        return (revision, self.commits[revision]) if revision in self.commits else None


class Hub:
    """The server, while open.

    Attributes:
        requests: of all that came, method, path, and headers by their names in lower case.
        may_write: the token that may.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: dict[tuple[str, str], Iterator[Fault]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.stored: dict[str, bytes] = {}
        self.may_write = "hf_writer"
        hub = self

        class Bound(Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> "Hub":
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """A commit of a repository; returns its 40 hexadecimal digits."""
        return self.repositories.setdefault(name, Repository()).commit(files)

    def fail(self, name: str, method: str, faults: Iterable[Fault]) -> None:
        """What the next requests of a repository are answered with: HEAD for its metadata, GET for large files."""
        self.faults[name, method] = iter(faults)

    def asked(self, name: str, method: str) -> list[dict[str, str]]:
        """The headers of the requests of a kind for a repository, in their order."""
        return [headers for asked, path, headers in self.requests if asked == method and f"/{name}/" in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def reply(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object, code: int = 200) -> None:
        self.reply(code, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_file(self, content: bytes, until: int | None = None) -> None:
        """The file from where the client asks it to, announced whole, sent up to a byte."""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:until])
        self.wfile.flush()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):  # the client left, as some tests have it
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def answer(self) -> None:
        hub, path = self.server_hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = path.strip("/").split("/")
        match parts:
            case [organisation, name, "resolve", revision, *file]:
                self.resolve(f"{organisation}/{name}", revision, "/".join(file))
            case ["storage", organisation, name, digest]:
                self.large(f"{organisation}/{name}", digest)
            case ["api", "models", organisation, name, "revision", revision]:
                self.info(f"{organisation}/{name}", revision)
            case ["api", "models", organisation, name]:
                self.info(f"{organisation}/{name}", "main")
            case _ if self.headers.get("Authorization") != f"Bearer {hub.may_write}" and parts[0] != "upload":
                self.reply(401, b'{"error": "Invalid credentials"}', {"X-Error-Message": "Invalid credentials"})
            case ["api", "validate-yaml"]:
                self.validate(json.loads(self.body)["content"])
            case ["api", "repos", "create"]:
                asked = json.loads(self.body)
                name = f"{asked['organization']}/{asked['name']}"
                code = 409 if name in hub.repositories else 200
                hub.repositories.setdefault(name, Repository(private=asked.get("visibility") == "private"))
                self.json({"url": f"{hub.url}/{name}", "name": name}, code)
            case ["api", "models", organisation, name, "preupload", _]:
                self.preupload(hub.repositories[f"{organisation}/{name}"])
            case [organisation, name, "info", "lfs", "objects", "batch"]:
                self.batch(json.loads(self.body)["objects"], f"{organisation}/{name.removesuffix('.git')}")
            case ["upload", organisation, name, digest]:
                self.store(f"{organisation}/{name}", digest)
            case ["api", "models", organisation, name, "commit", _]:
                self.commit(f"{organisation}/{name}")
            case _:
                self.reply(404, b"", {})

    def failed(self, name: str, content: bytes) -> bool:
        fault = next(self.server_hub.faults.get((name, self.command), iter(())), None)
        if fault:
            fault(self, content)
        return fault is not None

    def resolve(self, name: str, revision: str, file: str) -> None:
        hub = self.server_hub
        if self.command == "HEAD" and self.failed(name, b""):
            return
        found = hub.repositories[name].at(revision) if name in hub.repositories else None
        if name not in hub.repositories:
            return self.reply(401, b"", {"X-Error-Code": "RepoNotFound"})
        if not found:
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if file not in files:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content, digest = files[file], hashlib.sha256(files[file]).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if file.endswith(".safetensors"):
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            hub.stored[digest] = hub.stored.get(digest, content)
            return self.reply(302, b"", {**headers, "Location": f"{hub.storage}/storage/{name}/{digest}"})
        self.reply(200, b"" if self.command == "HEAD" else content, {**headers, "Content-Length": str(len(content))})

    def large(self, name: str, digest: str) -> None:
        content = self.server_hub.stored[digest]
        if not self.failed(name, content):
            self.send_file(content)

    def info(self, name: str, revision: str) -> None:
        if (repository := self.server_hub.repositories.get(name)) is None:
            return self.reply(401, b"", {"X-Error-Code": "RepoNotFound"})
        commit, files = repository.at(revision) or ("0" * 40, {})
        siblings = [{"rfilename": file} for file in files]
        self.json({"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": repository.private})

    def validate(self, content: str) -> None:
        try:
            metadata = yaml.safe_load(content.split("---")[1])
            errors = [] if isinstance(metadata, dict) and "license" in metadata else [{"message": "no license"}]
        except (yaml.YAMLError, IndexError) as error:
            errors = [{"message": str(error)}]
        self.json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, repository: Repository) -> None:
        files = (repository.at("main") or ("", {}))[1]
        answers = []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(".safetensors")
            known = files.get(file["path"])
            blob = known is not None and hashlib.sha1(b"blob %d\0" % len(known) + known).hexdigest()
            oid = hashlib.sha256(known).hexdigest() if known is not None and large else blob or None
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": answers})

    def batch(self, objects: list[dict], name: str) -> None:
        hub = self.server_hub
        for wanted in objects:
            if wanted["oid"] not in hub.stored:
                wanted["actions"] = {"upload": {"href": f"{hub.url}/upload/{name}/{wanted['oid']}"}}
        self.json({"transfer": "basic", "objects": objects})

    def store(self, name: str, digest: str) -> None:
        if self.failed(name, self.body):
            return
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.server_hub.stored[digest] = self.body
        self.reply(200, b"", {})

    def commit(self, name: str) -> None:
        if self.failed(name, b""):
            return
        files: dict[str, bytes] = {}
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.stored[value["oid"]]
        revision = self.server_hub.add(name, files)
        self.json({"commitUrl": f"{self.server_hub.url}/{name}/commit/{revision}", "commitOid": revision})
