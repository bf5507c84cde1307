"""A small server that speaks as much of the Hugging Face hub's protocol as reading a repository needs."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"


@contextmanager
def serving(repositories: Mapping[str, Path], cards: Mapping[str, str]) -> Iterator[str]:
    """Serve folders as repositories at one commit; gives the address for HF_ENDPOINT."""

    def content(repository: str, name: str) -> bytes | None:
        if name == "README.md":
            return cards.get(repository, "").encode()
        path = repositories[repository] / name
        return path.read_bytes() if path.is_file() else None

    def names(repository: str) -> list[str]:
        folder = repositories[repository]
        return ["README.md", *(p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file())]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: ARG002
            return

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = re.fullmatch(
                r"/api/(?:datasets|models)/([^/]+/[^/]+)/paths-info/[^/]+", self.path.partition("?")[0]
            )
            self._json(self._tree(found[1]) if found else [])

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            if found := re.fullmatch(r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
                self._json(self._info(found[1]))
            elif found := re.fullmatch(r"/api/(?:datasets|models)/([^/]+/[^/]+)/tree/[^/]+(?:/(.*))?", path):
                self._json([e for e in self._tree(found[1]) if e["path"].startswith(found[2] or "")])
            elif found := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._file(content(found[1], found[2]))
            else:
                self._send(404, b"", {})

        def _info(self, repository: str) -> dict[str, Any]:
            card = cards.get(repository)
            tree: dict[str, Any] = {
                "id": repository,
                "sha": COMMIT,
                "private": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
            }
            tree["siblings"] = [
                {"rfilename": e["path"], "size": e["size"], "blobId": "0"} for e in self._tree(repository)
            ]
            if card:
                patterns = [{"split": "train", "path": "sample/10BT/*"}]
                tree["cardData"] = {"configs": [{"config_name": "sample-10BT", "data_files": patterns}]}
            return tree

        def _tree(self, repository: str) -> list[dict[str, Any]]:
            sizes = {name: len(content(repository, name) or b"") for name in names(repository)}
            return [{"type": "file", "oid": "0", "path": name, "size": size} for name, size in sizes.items()]

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _file(self, data: bytes | None) -> None:
            if data is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"ETag": '"0"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted is None:
                self._send(200, data, headers)
                return
            start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
            part = data[start:stop]
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            self._send(206, part, headers)

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
