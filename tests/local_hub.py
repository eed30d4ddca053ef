"""A small Hub on this machine, for tests: the real clients talk to it over HTTP.

    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        subprocess.run([...], env=hub.environment(home=tmp_path / "home"))

`huggingface_hub`, `transformers` and `datasets` find it through `HF_ENDPOINT`. It keeps what they send in a folder:
`blobs/SHA256`, `commits/SHA.json` (parent, title, files) and `refs/TYPE/ORG/NAME.json`; nothing is ever overwritten
but refs. It is strict: a route, a field or a header that it does not know is refused with a message, and `hub.refused`
remembers it. Large files come from another host name, as the Hub's do, where a token is an error.

Faults are counted: `hub.faults["upload 500"] = 2` spoils the next two uploads. There are FAULTS, and no others.

It is built from what the clients send and parse; where the Hub itself differs, nobody looked. Xet is off.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import huggingface_hub.hf_api
import transformers.utils.hub
from huggingface_hub import constants

FAULTS = {
    "create 500": "creating a repository",
    "upload 500": "sending a large file",
    "upload dropped": "the connection is closed in the middle of a large file",
    "upload damaged": "a bit of a large file is flipped on its way",
    "commit 500": "committing, before anything is written",
    "commit dropped": "the connection is closed before the commit is written",
    "answer dropped": "the commit is written, its answer is lost",
    "overtaken": "someone else commits just before",
    "tag 500": "tagging",
    "download 500": "sending a file",
    "download dropped": "the connection is closed in the middle of a file",
    "download slow": "a file comes in small pieces, half a second in all",
    "download damaged": "a bit of a file is flipped on its way",
}
LARGE_SUFFIXES = (".safetensors", ".parquet", ".onnx", ".model", ".bin", ".pt", ".npz", ".webp", ".png")
LARGE_BYTES = 10 * 2**20
FIRST_COMMIT = {".gitattributes": "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LARGE_SUFFIXES)}
SHA1, SHA256 = r"[0-9a-f]{40}", r"[0-9a-f]{64}"
NAME = re.compile(r"[\w-][\w.-]{0,95}")
REF = re.compile(r"[\w-][\w./-]{0,200}")
# Asked for by some client, answered by "no such page", as a Hub without the feature would.
NOT_OFFERED = ("/api/agent-harnesses",)


class RefusedError(Exception):
    """An answer other than success: status, words, and the code that the clients look at."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class DroppedError(Exception):
    """The connection is to be closed without an answer."""


class Store:
    """Repositories in a folder: blobs by content, commits by content, refs by name."""

    def __init__(self, folder: Path):
        self.folder, self.lock = folder, threading.RLock()
        for name in ("blobs", "commits", "refs"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Keep bytes; returns their SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._write(self.blob(sha256), data)
        return sha256

    def blob(self, sha256: str) -> Path:
        if not re.fullmatch(SHA256, sha256):
            raise RefusedError(422, f"no SHA-256: {sha256!r}")
        return self.folder / "blobs" / sha256

    def file(self, data: bytes, large: bool) -> dict[str, Any]:
        """What a commit says of a file; `oid` is git's name for it (for a large one: for its pointer)."""
        sha256 = self.put(data)
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        held = text if large else data
        oid = hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()
        return {"oid": oid, "sha256": sha256, "size": len(data), "large": large}

    def commit(self, parent: str | None, files: Mapping[str, Any], title: str, message: str) -> str:
        record = {"parent": parent, "files": dict(sorted(files.items())), "title": title, "message": message}
        record["date"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        data = json.dumps(record, indent=1).encode()
        sha = hashlib.sha1(b"commit %d\0" % len(data) + data).hexdigest()
        self._write(self.folder / "commits" / f"{sha}.json", data)
        return sha

    def read_commit(self, sha: str) -> dict[str, Any]:
        return json.loads((self.folder / "commits" / f"{sha}.json").read_text())

    def history(self, sha: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        while sha:
            record = self.read_commit(sha)
            yield sha, record
            sha = record["parent"]

    def _refs(self, kind: str, repo: str) -> Path:
        return self.folder / "refs" / kind / f"{repo}.json"

    def create(self, kind: str, repo: str):
        files = {path: self.file(text.encode(), large=False) for path, text in FIRST_COMMIT.items()}
        first = self.commit(None, files, "initial commit", "")
        self.write_refs(kind, repo, {"refs/heads/main": first})

    def exists(self, kind: str, repo: str) -> bool:
        return self._refs(kind, repo).is_file()

    def refs(self, kind: str, repo: str) -> dict[str, str]:
        """Full ref name to commit.

        Raises:
            RefusedError: no such repository.
        """
        if not self.exists(kind, repo):
            raise RefusedError(404, f"{kind} {repo} does not exist", "RepoNotFound")
        return json.loads(self._refs(kind, repo).read_text())

    def write_refs(self, kind: str, repo: str, refs: Mapping[str, str]):
        self._write(self._refs(kind, repo), json.dumps(refs, indent=1).encode(), replace=True)

    def resolve(self, kind: str, repo: str, revision: str) -> str:
        """The commit of a branch, tag, `refs/...` or a full commit of this repository.

        Raises:
            RefusedError: there is none.
        """
        refs = self.refs(kind, repo)
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in refs:
                return refs[name]
        if re.fullmatch(SHA1, revision) and any(revision == sha for r in refs.values() for sha, _ in self.history(r)):
            return revision
        raise RefusedError(404, f"{kind} {repo} has no revision {revision!r}", "RevisionNotFound")

    @staticmethod
    def _write(path: Path, data: bytes, replace: bool = False):
        if path.exists() and not replace:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{threading.get_ident()}.partial")
        partial.write_bytes(data)
        os.replace(partial, path)


class LocalHub:
    """The server, its token and its faults; a context manager."""

    def __init__(self, folder: Path, token: str = "hf_LocalHubTokenForTestsOnly0123456789", part_bytes: int = 2**30):
        self.store, self.token, self.part_bytes = Store(folder), token, part_bytes
        self.faults: Counter[str] = Counter()
        self.requests: list[tuple[str, str, int]] = []  # method, path, status
        self.refused: list[str] = []  # what a client of this project should never have sent
        self.listing: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda entries: entries
        self.parts: dict[tuple[str, int], bytes] = {}
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.large_files_host = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: bool = False, offline: bool = False) -> dict[str, str]:
        """Variables for a process that is to find this Hub, and no other, with its caches in `home`."""
        variables = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return variables | ({"HF_TOKEN": self.token} if token else {})

    def spoil(self, fault: str) -> bool:
        """Whether this is one of the requests that the fault is to hit."""
        unknown = set(self.faults) - set(FAULTS)
        assert not unknown, f"no such fault: {unknown}"
        with self.store.lock:
            if self.faults[fault] <= 0:
                return False
            self.faults[fault] -= 1
            return True


class Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    # Requests in

    def handle_request(self):
        self.body_read, self.sent = False, 0
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        try:
            self.dispatch(url.path)
        except RefusedError as refused:
            self.refuse(refused)
        except (DroppedError, ConnectionError):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        self.hub.requests.append((self.command, self.path, self.sent))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def dispatch(self, path: str):
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split("|"):
                values = {key: unquote(value or "") for key, value in found.groupdict().items()}
                needs_token = method in ("POST", "DELETE") and "/paths-info/" not in path and "/validate" not in path
                if "/parts/" not in path and "/large/" not in path:
                    self.authenticate(needs_token)
                return action(self, **values)
        self.read_body()
        if path not in NOT_OFFERED:
            self.hub.refused.append(f"{self.command} {self.path}")
        raise RefusedError(404, f"this Hub has no {self.command} {path}")

    def authenticate(self, needed: bool):
        given = self.headers.get("Authorization")
        if given is not None and given != f"Bearer {self.hub.token}":
            raise RefusedError(401, "Invalid credentials in Authorization header")
        if needed and given is None:
            raise RefusedError(401, "Invalid username or password.")

    def read_body(self, limit: int | None = None) -> bytes:
        self.body_read = True
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if limit is None else min(limit, length))

    def read_json(self, required: Mapping[str, type], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The body, an object with these fields and no others."""
        try:
            body = json.loads(self.read_body() or b"{}")
        except json.JSONDecodeError as error:
            raise RefusedError(400, f"not JSON: {error}") from error
        return self.checked(body, required, optional or {}, self.path)

    def checked(self, body, required: Mapping[str, type], optional: Mapping[str, Any], where: str) -> dict[str, Any]:
        known = {**required, **optional}
        if not isinstance(body, dict) or not required.keys() <= body.keys() <= known.keys():
            self.hub.refused.append(f"{where}: {body!r:.300}")
            raise RefusedError(400, f"{where}: expected the fields {sorted(required)}, may be {sorted(optional)}")
        for key, value in body.items():
            if not isinstance(value, known[key]):
                self.hub.refused.append(f"{where}: {key} is {value!r:.300}")
                raise RefusedError(400, f"{where}: {key} is {value!r:.100}")
        return body

    # Answers out

    def refuse(self, refused: RefusedError):
        if not self.body_read and self.command in ("POST", "PUT"):
            self.read_body()
        headers = {"X-Error-Message": refused.message.replace("\n", " ")}
        if refused.code:
            headers["X-Error-Code"] = refused.code
        self.answer({"error": refused.message}, refused.status, headers)

    def answer(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.head(status, {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(data)

    def head(self, status: int, headers: Mapping[str, str]):
        self.sent = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    # Repositories

    def whoami(self):
        self.answer({"type": "user", "name": "tester", "fullname": "Tester", "orgs": [{"name": "org"}]})

    def validate_yaml(self):
        content = self.read_json({"content": str, "repoType": str})["content"]
        if not re.match(r"---\n.*?\n---\n", content, re.DOTALL):
            return self.answer({"errors": [{"message": "no front matter"}], "warnings": []}, 400)
        return self.answer({"errors": [], "warnings": []})

    def create_repo(self):
        fields = {"organization": (str, type(None)), "type": str, "private": bool, "visibility": str}
        body = self.read_json({"name": str}, fields)
        if self.hub.spoil("create 500"):
            raise RefusedError(500, "Internal Error")
        owner, kind = body.get("organization") or "tester", body.get("type", "model")
        if kind not in ("model", "dataset") or not all(NAME.fullmatch(part) for part in (owner, body["name"])):
            raise RefusedError(400, f"no repository of type {kind!r} can be called {owner}/{body['name']}")
        repo = f"{owner}/{body['name']}"
        with self.hub.store.lock:
            url = self.hub.endpoint + ("/datasets" if kind == "dataset" else "") + f"/{repo}"
            if self.hub.store.exists(kind, repo):
                return self.answer({"error": "You already created this repo", "url": url}, 409)
            self.hub.store.create(kind, repo)
        return self.answer({"url": url, "name": repo, "id": repo})

    def info(self, kind: str, repo: str, revision: str = "main"):
        sha = self.hub.store.resolve(kind, repo, revision or "main")
        record = self.hub.store.read_commit(sha)
        siblings = [{"rfilename": entry["path"]} for entry in self.hub.listing(entries_of(record["files"]))]
        self.answer(
            {
                "id": repo,
                "sha": sha,
                "lastModified": record["date"],
                "private": False,
                "tags": [],
                "siblings": siblings,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
            }
        )

    def list_refs(self, kind: str, repo: str):
        groups = {
            "branches": "refs/heads/",
            "tags": "refs/tags/",
            "converts": "refs/convert/",
            "pullRequests": "refs/pr/",
        }
        found = self.hub.store.refs(kind, repo).items()
        self.answer(
            {
                group: [
                    {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha}
                    for ref, sha in found
                    if ref.startswith(prefix)
                ]
                for group, prefix in groups.items()
            }
        )

    def list_commits(self, kind: str, repo: str, revision: str):
        history = self.hub.store.history(self.hub.store.resolve(kind, repo, revision))
        self.answer(
            [
                {"id": sha, "title": c["title"], "message": c["message"], "date": c["date"]}
                | {"authors": [{"user": "tester"}]}
                for sha, c in history
            ]
        )

    def tree(self, kind: str, repo: str, revision: str, path: str = ""):
        if unknown := self.query.keys() - {"recursive", "expand", "limit"}:
            raise RefusedError(400, f"tree: unknown {sorted(unknown)}")
        files = self.hub.store.read_commit(self.hub.store.resolve(kind, repo, revision))["files"]
        path = path.strip("/")
        inside = {name: file for name, file in files.items() if not path or name.startswith(path + "/")}
        if path and not inside:
            raise RefusedError(404, f"{path} does not exist", "EntryNotFound")
        depth = path.count("/") + 2 if path else 1
        whole = self.query.get("recursive", "").lower() in ("true", "1")
        here = {name: file for name, file in inside.items() if whole or name.count("/") < depth}
        folders = {
            "/".join(name.split("/")[:end])
            for name in inside
            for end in range(depth, name.count("/") + 1 if whole else min(depth, name.count("/")) + 1)
        }
        self.answer(self.hub.listing([folder_entry(name) for name in sorted(folders)] + entries_of(here)))

    def paths_info(self, kind: str, repo: str, revision: str):
        body = self.read_body()
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(body)["paths"]
        else:
            wanted = parse_qs(body.decode())["paths"]
        files = self.hub.store.read_commit(self.hub.store.resolve(kind, repo, revision))["files"]
        folders = [name for name in wanted if any(file.startswith(f"{name}/") for file in files)]
        found = entries_of({name: files[name] for name in wanted if name in files})
        self.answer([folder_entry(name) for name in folders] + found)

    def add_tag(self, kind: str, repo: str, revision: str):
        body = self.read_json({"tag": str}, {"message": str})
        if self.hub.spoil("tag 500"):
            raise RefusedError(500, "Internal Error")
        self.add_ref(kind, repo, f"refs/tags/{body['tag']}", self.hub.store.resolve(kind, repo, revision))

    def add_branch(self, kind: str, repo: str, revision: str):
        start = self.read_json({}, {"startingPoint": str}).get("startingPoint", "main")
        self.add_ref(kind, repo, f"refs/heads/{revision}", self.hub.store.resolve(kind, repo, start))

    def add_ref(self, kind: str, repo: str, ref: str, sha: str):
        if not REF.fullmatch(ref) or ".." in ref:
            raise RefusedError(400, f"no name for a ref: {ref!r}")
        with self.hub.store.lock:
            refs = self.hub.store.refs(kind, repo)
            if ref in refs:
                raise RefusedError(409, f"Reference already exists: {ref}")
            self.hub.store.write_refs(kind, repo, refs | {ref: sha})
        self.answer({})

    def drop_ref(self, kind: str, repo: str, revision: str, group: str):
        ref = f"refs/{'tags' if group == 'tag' else 'heads'}/{revision}"
        with self.hub.store.lock:
            refs = self.hub.store.refs(kind, repo)
            if refs.pop(ref, None) is None:
                raise RefusedError(404, f"no {ref}", "RevisionNotFound")
            self.hub.store.write_refs(kind, repo, refs)
        self.answer({})

    def open_pull_request(self, kind: str, repo: str):
        fields = {"title": str, "description": str, "pullRequest": bool}
        if not self.read_json(fields)["pullRequest"]:
            raise RefusedError(400, "this Hub has pull requests, and no discussions")
        number = self.new_pull_request(kind, repo, self.hub.store.resolve(kind, repo, "main"))
        self.answer({"num": number, "url": f"{self.hub.endpoint}/{repo}/discussions/{number}"})

    def new_pull_request(self, kind: str, repo: str, sha: str) -> int:
        with self.hub.store.lock:
            refs = self.hub.store.refs(kind, repo)
            number = 1 + sum(ref.startswith("refs/pr/") for ref in refs)
            self.hub.store.write_refs(kind, repo, refs | {f"refs/pr/{number}": sha})
        return number

    # Files in

    def preupload(self, kind: str, repo: str, revision: str):
        body = self.read_json({"files": list}, {"gitIgnore": str})
        files = self.hub.store.read_commit(self.hub.store.resolve(kind, repo, revision))["files"]
        answers = []
        for file in body["files"]:
            self.checked(file, {"path": str, "size": int, "sample": str}, {}, "preupload")
            large = file["path"].endswith(LARGE_SUFFIXES) or file["size"] > LARGE_BYTES
            held = files.get(file["path"])
            oid = held and (held["sha256"] if held["large"] else held["oid"])
            answers.append(
                {"path": check_path(file["path"]), "uploadMode": "lfs" if large else "regular"}
                | {"shouldIgnore": False, "oid": oid}
            )
        self.answer({"files": answers})

    def lfs_batch(self, kind: str, repo: str):
        optional = {"ref": dict, "hash_algo": str}
        body = self.read_json({"operation": str, "transfers": list, "objects": list}, optional)
        if body["operation"] != "upload" or body.get("hash_algo", "sha256") != "sha256":
            raise RefusedError(422, "only uploads by SHA-256")
        self.hub.store.refs("dataset" if kind else "model", repo)
        objects, transfer = [], "basic"
        for wanted in body["objects"]:
            oid, size = (self.checked(wanted, {"oid": str, "size": int}, {}, "object")[key] for key in ("oid", "size"))
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if not self.hub.store.blob(oid).is_file():
                verify = {"href": f"{self.hub.endpoint}/{kind}{repo}.git/info/lfs/verify"}
                target, header = f"{self.hub.large_files_host}/large/{oid}", {}
                if size > self.hub.part_bytes and "multipart" in body["transfers"]:
                    transfer, count = "multipart", -(-size // self.hub.part_bytes)
                    header = {str(i + 1): f"{self.hub.large_files_host}/parts/{oid}/{i + 1}" for i in range(count)}
                    header["chunk_size"] = str(self.hub.part_bytes)
                    target = f"{self.hub.endpoint}/large/{oid}/complete"
                answer["actions"] = {"upload": {"href": target, "header": header}, "verify": verify}
            objects.append(answer)
        self.answer({"transfer": transfer, "objects": objects})

    def lfs_verify(self, kind: str, repo: str):
        body = self.read_json({"oid": str, "size": int})
        blob = self.hub.store.blob(body["oid"])
        if not blob.is_file() or blob.stat().st_size != body["size"]:
            raise RefusedError(422, f"{body['oid']} has not arrived")
        self.answer({})

    def receive(self, length: int | None = None) -> bytes:
        if "Authorization" in self.headers:
            self.hub.refused.append(f"a token was sent to {self.path}")
            raise RefusedError(400, "no token belongs here")
        if self.hub.spoil("upload 500"):
            raise RefusedError(500, "Internal Error")
        if self.hub.spoil("upload dropped"):
            self.read_body(limit=int(self.headers.get("Content-Length") or 2) // 2)
            raise DroppedError
        data = self.read_body()
        return flip_a_bit(data) if self.hub.spoil("upload damaged") else data

    def receive_large(self, oid: str):
        self.keep_large(oid, self.receive())

    def receive_part(self, oid: str, number: str):
        data = self.receive()
        self.hub.parts[oid, int(number)] = data
        self.answer({}, headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    def complete_large(self, oid: str):
        body = self.read_json({"oid": str, "parts": list})
        data = b"".join(self.hub.parts.pop((oid, part["partNumber"])) for part in body["parts"])
        self.keep_large(oid, data)

    def keep_large(self, oid: str, data: bytes):
        if hashlib.sha256(data).hexdigest() != oid:
            raise RefusedError(400, f"what arrived is not {oid}")
        self.hub.store.put(data)
        self.answer({})

    def commit(self, kind: str, repo: str, revision: str):
        lines = [json.loads(line) for line in self.read_body().splitlines()]
        if self.query.keys() - {"create_pr"}:
            raise RefusedError(400, f"commit: unknown {sorted(self.query)}")
        if self.hub.spoil("commit 500"):
            raise RefusedError(500, "Internal Error")
        if self.hub.spoil("commit dropped"):
            raise DroppedError
        if not lines or lines[0].get("key") != "header":
            raise RefusedError(400, "a commit begins with its header")
        header = self.checked(lines[0]["value"], {"summary": str}, {"description": str, "parentCommit": str}, "header")
        store = self.hub.store
        with store.lock:
            if self.hub.spoil("overtaken"):
                self.overtake(kind, repo, revision)
            head = store.resolve(kind, repo, revision)
            refs = store.refs(kind, repo)
            ref = next((name for name in (f"refs/heads/{revision}", revision) if name in refs), None)
            if ref is None:
                raise RefusedError(404, f"{revision} is no branch", "RevisionNotFound")
            wanted = header.get("parentCommit", head)
            if self.query.get("create_pr") != "1" and not head.startswith(wanted):
                raise RefusedError(
                    412, f"A commit has happened since. Please refresh and try again: {head}, not {wanted}"
                )
            files = self.changed(store.read_commit(head)["files"], lines[1:])
            sha = store.commit(head, files, header["summary"], header.get("description", ""))
            answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{sha}"}
            if self.query.get("create_pr") == "1":
                number = self.new_pull_request(kind, repo, sha)
                answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo}/discussions/{number}"
            else:
                store.write_refs(kind, repo, store.refs(kind, repo) | {ref: sha})
        if self.hub.spoil("answer dropped"):
            raise DroppedError
        self.answer(answer)

    def changed(self, files: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
        store, files = self.hub.store, dict(files)
        for line in lines:
            key, value = line.get("key"), line.get("value", {})
            path = check_path(value.get("path", "").rstrip("/") if key == "deletedFolder" else value.get("path"))
            if key == "file":
                self.checked(value, {"path": str, "content": str, "encoding": str}, {}, "file")
                files[path] = store.file(base64.b64decode(value["content"], validate=True), large=False)
            elif key == "lfsFile":
                self.checked(value, {"path": str, "algo": str, "oid": str}, {"size": int}, "lfsFile")
                blob = store.blob(value["oid"])
                if not blob.is_file():
                    raise RefusedError(400, f"{path}: {value['oid']} was never uploaded")
                files[path] = store.file(blob.read_bytes(), large=True)
            elif key in ("deletedFile", "deletedFolder"):
                gone = [n for n in files if n == path or (key == "deletedFolder" and n.startswith(f"{path}/"))]
                if not gone:
                    raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for name in gone:
                    del files[name]
            else:
                self.hub.refused.append(f"commit: {key}")
                raise RefusedError(400, f"a commit cannot say {key!r}")
        return files

    def overtake(self, kind: str, repo: str, revision: str):
        store, ref = self.hub.store, f"refs/heads/{revision}"
        head = store.resolve(kind, repo, revision)
        files = store.read_commit(head)["files"] | {"notes.txt": store.file(b"someone else's", large=False)}
        store.write_refs(kind, repo, store.refs(kind, repo) | {ref: store.commit(head, files, "overtaken", "")})

    # Files out

    def resolve_file(self, kind: str, repo: str, revision: str, path: str):
        store = self.hub.store
        sha = store.resolve("dataset" if kind else "model", repo, revision)
        file = store.read_commit(sha)["files"].get(path)
        if file is None:
            headers = {"X-Repo-Commit": sha, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.answer(b"Entry not found", 404, headers)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file["large"]:
            headers |= {"X-Linked-Size": str(file["size"]), "X-Linked-Etag": f'"{file["sha256"]}"'}
            headers |= {"Location": f"{self.hub.large_files_host}/large/{file['sha256']}"}
            return self.answer(b"", 302, headers)
        return self.send_file(store.blob(file["sha256"]), file["oid"], headers)

    def send_large(self, oid: str):
        if "Authorization" in self.headers:
            self.hub.refused.append(f"a token was sent to {self.path}")
            raise RefusedError(400, "no token belongs here")
        self.send_file(self.hub.store.blob(oid), oid, {"Accept-Ranges": "bytes"})

    def send_file(self, path: Path, etag: str, headers: dict[str, str]):
        if not path.is_file():
            raise RefusedError(404, f"no {path.name}", "EntryNotFound")
        if self.command == "GET" and self.hub.spoil("download 500"):
            raise RefusedError(500, "Internal Error")
        data, status = path.read_bytes(), 200
        if wanted := self.headers.get("Range"):
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
            if not found or int(found[1]) >= len(data):
                return self.answer(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
            start, end = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        headers |= {"ETag": f'"{etag}"', "Content-Length": str(len(data)), "Content-Type": "application/octet-stream"}
        if self.command == "GET" and self.hub.spoil("download damaged"):
            data = flip_a_bit(data)
        self.head(status, headers)
        if self.command == "HEAD":
            return
        if self.hub.spoil("download dropped"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            raise DroppedError
        pieces = 10 if self.hub.spoil("download slow") else 1
        size = -(-len(data) // pieces) or 1
        for start in range(0, len(data), size):
            self.wfile.write(data[start : start + size])
            self.wfile.flush()
            time.sleep(0.05 if pieces > 1 else 0)


def point_clients_at(hub: LocalHub, home: Path, monkeypatch):
    """Send the clients of this process to this Hub and keep their caches in `home`; xet is off, waits are short."""
    wait = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: wait(min(seconds, 0.05)))
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    # Clients that live as long as the process, and keep the address that they were made with.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)  # transformers 5.6 has none
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def check_path(path: Any) -> str:
    """A file's path inside a repository.

    Raises:
        RefusedError: it leaves the repository, or is no plain path.
    """
    if not isinstance(path, str) or not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise RefusedError(400, f"no path in a repository: {path!r}")
    return path


def entries_of(files: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    entries = []
    for path, file in files.items():
        entry = {"type": "file", "path": path, "oid": file["oid"], "size": file["size"]}
        if file["large"]:
            entry["lfs"] = {"oid": file["sha256"], "size": file["size"], "pointerSize": 134}
        entries.append(entry)
    return entries


def folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


_API, _REPO, _REV = r"/api/(?P<kind>model|dataset)s/", r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
_SITE = r"/(?P<kind>datasets/|)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", "/api/repos/create", Handler.create_repo),
    ("GET", f"{_API}{_REPO}", Handler.info),
    ("GET", f"{_API}{_REPO}/revision/{_REV}", Handler.info),
    ("GET", f"{_API}{_REPO}/refs", Handler.list_refs),
    ("GET", f"{_API}{_REPO}/commits/{_REV}", Handler.list_commits),
    ("GET", f"{_API}{_REPO}/tree/{_REV}(?P<path>/.*)?", Handler.tree),
    ("POST", f"{_API}{_REPO}/paths-info/{_REV}", Handler.paths_info),
    ("POST", f"{_API}{_REPO}/tag/{_REV}", Handler.add_tag),
    ("POST", f"{_API}{_REPO}/branch/{_REV}", Handler.add_branch),
    ("DELETE", f"{_API}{_REPO}/(?P<group>tag|branch)/{_REV}", Handler.drop_ref),
    ("POST", f"{_API}{_REPO}/discussions", Handler.open_pull_request),
    ("POST", f"{_API}{_REPO}/preupload/{_REV}", Handler.preupload),
    ("POST", f"{_API}{_REPO}/commit/{_REV}", Handler.commit),
    ("POST", rf"{_SITE}{_REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", rf"{_SITE}{_REPO}\.git/info/lfs/verify", Handler.lfs_verify),
    ("PUT", f"/large/(?P<oid>{SHA256})", Handler.receive_large),
    ("PUT", rf"/parts/(?P<oid>{SHA256})/(?P<number>\d+)", Handler.receive_part),
    ("POST", f"/large/(?P<oid>{SHA256})/complete", Handler.complete_large),
    ("GET|HEAD", f"/large/(?P<oid>{SHA256})", Handler.send_large),
    ("GET|HEAD", f"{_SITE}{_REPO}/resolve/{_REV}/(?P<path>.+)", Handler.resolve_file),
]
