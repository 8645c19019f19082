"""A folder behind the part of S3's HTTP that reading needs, so that the real client speaks it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import gmtime, strftime
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Bucket(ThreadingHTTPServer):
    """Serves the files below a folder as a bucket called `bucket`; notes what is asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.closed = False
        """Whether nobody may read."""

    def address(self, path: str = "") -> str:
        """Of a file or folder in it, as `mfdan score` takes it."""
        options = f"scheme=http&endpoint_override=127.0.0.1:{self.server_port}&region=us-east-1"
        return f"s3://bucket/{path}?{options}"


@contextmanager
def bucket_of(folder: Path) -> Iterator[Bucket]:
    """Serve a folder until the block ends."""
    with Bucket(folder) as bucket:
        thread = threading.Thread(target=bucket.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield bucket
        finally:
            bucket.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def do_HEAD(self) -> None:
        if self.server.closed:
            self._send(403, body=False)
        else:
            self._answer_file(body=False)

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        if self.server.closed:
            self._send(403)
        elif "list-type" in asked:
            self._answer_listing(asked.get("prefix", [""])[0])
        else:
            self._answer_file(body=True)

    def log_message(self, *_told: object) -> None:
        """Say nothing."""

    def _answer_file(self, *, body: bool) -> None:
        name = unquote(urlsplit(self.path).path).removeprefix("/bucket").strip("/")
        self.server.asked.append(f"{self.command} {name}")
        path = self.server.folder / name
        if not path.is_file():
            self._send(200 if not name else 404)
            return
        data, size = path.read_bytes(), path.stat().st_size
        status, headers = 200, {"Last-Modified": formatdate(path.stat().st_mtime, usegmt=True)}
        if given := self.headers.get("Range"):
            first, last = (int(number) for number in given.removeprefix("bytes=").split("-"))
            data = data[first : last + 1]
            status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{size}"
        self._send(status, data, headers, body=body)

    def _answer_listing(self, prefix: str) -> None:
        self.server.asked.append(f"LIST {prefix}")
        files = sorted(path for path in self.server.folder.rglob("*") if path.is_file())
        keys = [(path.relative_to(self.server.folder).as_posix(), path.stat()) for path in files]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{found.st_size}</Size><LastModified>"
            f"{strftime('%Y-%m-%dT%H:%M:%SZ', gmtime(found.st_mtime))}</LastModified></Contents>"
            for key, found in keys
            if key.startswith(prefix)
        )
        self._send(
            200,
            f'<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><KeyCount>{len(keys)}'
            f"</KeyCount><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>".encode(),
            {"Content-Type": "application/xml"},
        )

    def _send(
        self,
        status: int,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        body: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)
