"""Real servers on the loopback device that misbehave as real ones do."""

import http.client
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@dataclass
class Faulty:
    """A server of files whose faults are set by the test, and counted off as they occur."""

    files: dict[str, bytes]
    """By path, such as ``"/a.tgz"``."""
    url: str = ""
    cut_after: list[int] = field(default_factory=list)
    """For each coming answer: bytes of the body after which the connection is cut."""
    statuses: list[int] = field(default_factory=list)
    """For each coming request: a status to answer instead."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of answers with such a status."""
    page: bytes | None = None
    """What is answered instead of any file, with status 200."""
    ignores_range: bool = False
    tells_size: bool = True
    shift: int = 0
    """How far from the byte asked for a partial answer begins."""
    etag: str = '"one"'
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Range of every request."""
    on_request: Callable[[str], None] = lambda path: None


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"

    def do_GET(self) -> None:
        faulty = self.server.faulty
        wanted = self.headers.get("Range", "")
        faulty.requests.append((self.path, wanted))
        faulty.on_request(self.path)
        if faulty.statuses and (status := faulty.statuses.pop(0)) != 200:
            self.send_response(status)
            for name, value in faulty.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = faulty.files.get(self.path) if faulty.page is None else faulty.page
        if body is None:
            self.send_error(404)
            return
        self._send(faulty, body, wanted)

    def _send(self, faulty: Faulty, body: bytes, wanted: str) -> None:
        start = 0
        same = self.headers.get("If-Range", faulty.etag) == faulty.etag
        if (found := re.fullmatch(r"bytes=(\d+)-", wanted)) and same and not faulty.ignores_range:
            start = int(found[1]) + faulty.shift
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", faulty.etag)
        if faulty.tells_size:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        self.wfile.write(rest[: faulty.cut_after.pop(0)] if faulty.cut_after else rest)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    faulty: Faulty

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that have gone: some are killed on purpose."""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Faulty]:
    """Serve ``files`` until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.faulty = Faulty(files, url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.faulty
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Metadata:
    """A cloud's metadata service, which asks for the headers that the real ones ask for."""

    answers: dict[str, str] = field(default_factory=dict)
    """By path; what is not here is answered with 404."""
    url: str = ""
    statuses: dict[str, int] = field(default_factory=dict)
    """Paths that are answered with this status instead."""
    silent: set[str] = field(default_factory=set)
    """Paths to which no answer ever arrives."""
    tokens: list[str] = field(default_factory=list)
    """EC2's, as they were given out; only the last one is valid."""
    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""
    closing: threading.Event = field(default_factory=threading.Event)

    def asked(self, path: str) -> int:
        return sum(path in request for request in self.requests)


class _MetadataHandler(BaseHTTPRequestHandler):
    server: "_MetadataServer"

    def do_PUT(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def _handle(self) -> None:
        service = self.server.service
        path = self.path.partition("?")[0]
        service.requests.append(f"{self.command} {self.path}")
        if path in service.silent:
            service.closing.wait(20)
            return
        status, text = self._answer(service, path)
        self.send_response(service.statuses.get(path, status))
        if service.statuses.get(path) == 302:
            self.send_header("Location", f"{service.url}/elsewhere")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def _answer(self, service: Metadata, path: str) -> tuple[int, str]:
        if path == "/latest/api/token":
            if self.command != "PUT" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
                return 400, ""
            service.tokens.append(f"secret-{len(service.tokens)}")
            return 200, service.answers.get(path, service.tokens[-1])
        if path.startswith("/latest/"):
            token = self.headers.get("X-aws-ec2-metadata-token")
            if not service.tokens or token != service.tokens[-1]:
                return 401, ""
        if path.startswith("/computeMetadata/") and self.headers["Metadata-Flavor"] != "Google":
            return 403, ""
        if path.startswith("/metadata/") and self.headers["Metadata"] != "true":
            return 400, ""
        return (200, service.answers[path]) if path in service.answers else (404, "")

    def log_message(self, *_: object) -> None:
        pass


class _MetadataServer(ThreadingHTTPServer):
    daemon_threads = True
    service: Metadata

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that wait no longer."""


@contextmanager
def metadata(answers: dict[str, str] | None = None) -> Iterator[Metadata]:
    """Serve a cloud's metadata until the block ends."""
    server = _MetadataServer(("127.0.0.1", 0), _MetadataHandler)
    url = f"http://127.0.0.1:{server.server_port}"
    server.service = Metadata(dict(answers or {}), url=url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.service
    finally:
        server.service.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def s3_store() -> Iterator[str]:
    """Run moto's S3 server and yield its URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass
class Wire:
    """A connection to an S3 server, on which the test sets faults."""

    url: str = ""
    refuse: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
    """Given method and path: the status and the S3 error code to answer with instead."""
    cut: Callable[[str, str], bool] = lambda method, path: False
    """Whether to close the connection after the half of what is sent, without an answer."""
    lie: Callable[[str, str, bytes], bytes] = lambda method, path, body: body
    """What of a body arrives at the server."""
    key: str = ""
    """The only access key that is valid; empty: any."""
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def sent(self) -> list[str]:
        """Paths of all that was put."""
        return [path for method, path in self.requests if method == "PUT"]


class _Relay(BaseHTTPRequestHandler):
    server: "_RelayServer"
    protocol_version = "HTTP/1.1"

    def _relay(self) -> None:
        wire, method = self.server.wire, self.command
        wire.requests.append((method, self.path))
        length = int(self.headers.get("Content-Length") or 0)
        if wire.cut(method, self.path):
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        refused = wire.refuse(method, self.path)
        if wire.key and f"Credential={wire.key}/" not in self.headers.get("Authorization", ""):
            refused = (400, "ExpiredToken")
        if refused is not None:
            status, code = refused
            text = f"<Error><Code>{code}</Code><Message>{code}, says the test</Message></Error>"
            self._answer(status, {"Content-Type": "application/xml"}, text.encode())
            return
        to = http.client.HTTPConnection(self.server.behind, timeout=30)
        # What a lying wire does to a body, its checksum would tell.
        drop = ("host", "expect") if wire.lie(method, self.path, body) == body else _CHECKED
        headers = {n: v for n, v in self.headers.items() if not n.lower().startswith(drop)}
        body = wire.lie(method, self.path, body)
        to.request(method, self.path, body, {**headers, "Content-Length": str(len(body))})
        got = to.getresponse()
        self._answer(got.status, dict(got.getheaders()), got.read())
        to.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _relay  # noqa: N815 (named by http.server)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else str(len(body))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


_CHECKED = ("host", "expect", "content-md5", "x-amz-checksum", "x-amz-sdk-checksum")


class _RelayServer(ThreadingHTTPServer):
    daemon_threads = True
    wire: Wire
    behind: str

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that have gone."""


@contextmanager
def wired(store: str) -> Iterator[Wire]:
    """Stand between a client and the S3 server at ``store`` until the block ends."""
    server = _RelayServer(("127.0.0.1", 0), _Relay)
    server.wire = Wire(f"http://127.0.0.1:{server.server_port}")
    server.behind = store.removeprefix("http://")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.wire
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_store(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str) -> None:
    """Let this process speak to the S3 server at ``url`` alone, without patience of its own."""
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in store_environment(folder, url).items():
        monkeypatch.setenv(name, value)
    (folder / "credentials").write_text(credentials("first"))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()


def empty_bucket(name: str) -> None:
    """Make a bucket in the store in use, or empty the one that a test before has left."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    if fs.exists(name):
        fs.rm(name, recursive=True)
    fs.mkdir(name)


def store_environment(folder: Path, url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": str(folder / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
    }


def credentials(key: str) -> str:
    return f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n"
