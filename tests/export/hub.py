"""A stand-in for the hub, on the loopback interface: what it is asked to create and upload, it keeps."""

import base64
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
        self.endpoint = ""


@contextmanager
def serve_stand_in() -> Iterator[StandIn]:
    hub = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def _reply(self, code: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
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
            elif path == "/api/validate-yaml":
                self._reply(200, {"errors": [], "warnings": []})
            else:
                repo = "/".join(path.split("/")[3:5])
                if repo not in hub.files:
                    self._reply(404, {"error": "not here"})
                    return
                hub.tokens.add(self.headers.get("Authorization"))
                self._repository(repo, path.split("/")[5:], data)

        def _repository(self, repo: str, rest: list[str], data: bytes) -> None:
            files = hub.files[repo]
            if rest[:1] == ["preupload"]:
                asked = json.loads(data)["files"]
                self._reply(
                    200,
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]},
                )
            elif rest[:1] == ["commit"]:
                for line in map(json.loads, data.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "deletedFile":
                        del files[value["path"]]
                self._reply(200, {"commitUrl": f"{hub.endpoint}/{repo}/commit/{'a' * 40}", "commitOid": "a" * 40})
            elif rest[:1] == ["tree"]:
                tree = [{"type": "file", "oid": "b" * 40, "size": len(data), "path": p} for p, data in files.items()]
                self._reply(200, tree)
            else:
                siblings = [{"rfilename": name} for name in files]
                self._reply(200, {"id": repo, "sha": "a" * 40, "private": hub.private[repo], "siblings": siblings})

        do_GET = do_POST = do_HEAD = _handle

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
