"""A stand-in for the hub, on the loopback interface: what it is asked to create and upload, it keeps."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StandIn:
    """What the hub was given: repositories and whether they are private, the files of each, and the tokens used."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str | None] = set()
        self.refuses_with: int | None = None
        self.lfs: str | None = None
        """How weights are taken, if as files of type LFS: "basic", or "multipart" as the hub does above 5 GB."""
        self.part_bytes = 512
        self.objects: dict[str, bytes] = {}
        """What came by LFS, by the SHA-256 of the whole."""
        self.num_puts = 0
        self.lfs_refuses_with: int | None = None
        self.has_no_room = False
        self.endpoint = ""


@contextmanager
def serve_stand_in() -> Iterator[StandIn]:
    hub = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def _reply(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            for name, text in (headers or {}).items():
                self.send_header(name, text)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _handle(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            if hub.refuses_with is not None:
                self._reply(hub.refuses_with, {"error": "not here"})
            elif path == "/api/repos/create":
                hub.tokens.add(self.headers.get("Authorization"))
                asked = json.loads(data)
                repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                is_new = repo not in hub.private
                if is_new:
                    hub.private[repo] = asked.get("private", asked.get("visibility") == "private")
                    hub.files[repo] = {}
                self._reply(200 if is_new else 409, {"url": f"{hub.endpoint}/{repo}", "name": repo, "id": repo})
            elif path.endswith(".git/info/lfs/objects/batch"):
                self._offer(json.loads(data)["objects"])
            elif path.startswith("/lfs/"):
                self._store(path.split("/")[2:], data)
            elif path == "/api/validate-yaml":
                self._reply(200, {"errors": [], "warnings": []})
            else:
                repo = "/".join(path.split("/")[3:5])
                if repo not in hub.files:
                    self._reply(404, {"error": "not here"})
                    return
                hub.tokens.add(self.headers.get("Authorization"))
                self._repository(repo, path.split("/")[5:], data)

        def _mode(self, name: str) -> str:
            return "lfs" if hub.lfs and name.endswith((".safetensors", ".gguf", ".bin")) else "regular"

        def _offer(self, objects: list[dict[str, Any]]) -> None:
            """Where each object goes that is not here yet."""
            offered = []
            for one in objects:
                href, actions = f"{hub.endpoint}/lfs/{one['oid']}", {}
                if one["oid"] not in hub.objects:
                    parts = range(1, 1 + -(-one["size"] // hub.part_bytes)) if hub.lfs == "multipart" else ()
                    header = {f"{part:05d}": f"{href}/{part}" for part in parts}
                    header |= {"chunk_size": str(hub.part_bytes)} if parts else {}
                    actions = {
                        "upload": {"href": href, "header": header},
                        "verify": {"href": f"{href}/verify", "header": {}},
                    }
                if hub.has_no_room:
                    actions, one["error"] = {}, {"code": 403, "message": "you have no room left"}
                offered.append({**one, "actions": actions} if actions else one)
            self._reply(200, {"transfer": hub.lfs, "objects": offered})

        def _store(self, rest: list[str], data: bytes) -> None:
            oid, part = rest[0], rest[1] if len(rest) > 1 else ""
            if hub.lfs_refuses_with is not None:
                self._reply(hub.lfs_refuses_with, {"error": "no room"})
                return
            if self.command == "PUT":
                hub.num_puts += 1
                hub.objects[f"{oid}/{part}" if part else oid] = data
            elif not part:
                parts = sorted(json.loads(data)["parts"], key=lambda one: one["partNumber"])
                hub.objects[oid] = b"".join(hub.objects.pop(f"{oid}/{one['partNumber']}") for one in parts)
            is_whole = part != "verify" or hashlib.sha256(hub.objects[oid]).hexdigest() == oid
            self._reply(200 if is_whole else 422, {}, {"ETag": f'"{len(data)}"'})

        def _repository(self, repo: str, rest: list[str], data: bytes) -> None:
            files = hub.files[repo]
            if rest[:1] == ["preupload"]:
                asked = json.loads(data)["files"]
                self._reply(
                    200,
                    {
                        "files": [
                            {"path": f["path"], "uploadMode": self._mode(f["path"]), "shouldIgnore": False}
                            for f in asked
                        ]
                    },
                )
            elif rest[:1] == ["commit"]:
                for line in map(json.loads, data.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.objects[value["oid"]]
                    elif line["key"] == "deletedFile":
                        del files[value["path"]]
                self._reply(200, {"commitUrl": f"{hub.endpoint}/{repo}/commit/{'a' * 40}", "commitOid": "a" * 40})
            elif rest[:1] == ["tree"]:
                tree = [{"type": "file", "oid": "b" * 40, "size": len(data), "path": p} for p, data in files.items()]
                self._reply(200, tree)
            else:
                siblings = [{"rfilename": name} for name in files]
                self._reply(200, {"id": repo, "sha": "a" * 40, "private": hub.private[repo], "siblings": siblings})

        do_GET = do_POST = do_PUT = do_HEAD = _handle

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
