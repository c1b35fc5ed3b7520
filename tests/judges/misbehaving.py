"""A server on loopback that speaks like an OpenAI-compatible endpoint, and misbehaves as a test wants."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = "#overall_reasoning fine\n#scores\n1.a no\n1.b 0\n2.a so\n2.b 5\n3.a so\n3.b 4\n"
Fault = Callable[[BaseHTTPRequestHandler], None]


def send(to: BaseHTTPRequestHandler, body: str, status: int = 200, kind: str = "application/json", **more: str) -> None:
    data = body.encode()
    to.send_response(status)
    to.send_header("Content-Type", kind)
    to.send_header("Content-Length", str(len(data)))
    for name, value in more.items():
        to.send_header(name.replace("_", "-"), value)
    to.end_headers()
    to.wfile.write(data)


def completion(text: str | None = GOOD, *, ended: str = "stop", usage: bool = True, **message: Any) -> str:
    choice = {"index": 0, "finish_reason": ended, "message": {"role": "assistant", "content": text, **message}}
    counted = {"prompt_tokens": 700, "completion_tokens": 100, "total_tokens": 800}
    return json.dumps(
        {"id": "c", "object": "chat.completion", "created": 1, "model": "stand-in", "choices": [choice],
         **({"usage": counted} if usage else {})}
    )  # fmt: skip


def error(status: int, text: str, **more: Any) -> Fault:
    """An error whose text holds what must not be repeated."""
    body = json.dumps({"error": {"message": text, "type": "x", "code": None, "param": None, **more}})
    return lambda to: send(to, body, status)


def hang(to: BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def drip(to: BaseHTTPRequestHandler) -> None:
    """A byte now and then: never silent, never done."""
    to.send_response(200)
    to.send_header("Content-Type", "application/json")
    to.end_headers()
    for _ in range(30):
        to.wfile.write(b" ")
        to.wfile.flush()
        time.sleep(0.1)


def half_json(to: BaseHTTPRequestHandler) -> None:
    send(to, completion()[:60])


def closed(to: BaseHTTPRequestHandler) -> None:
    to.close_connection = True


FAULTS: dict[str, Fault] = {
    "429": lambda to: send(to, "{}", 429, Retry_After="0"),
    "500": lambda to: send(to, "{}", 500),
    "503 in words": lambda to: send(to, "<h1>Busy</h1>", 503, "text/html"),
    "half JSON": half_json,
    "HTML": lambda to: send(to, "<html>Log in</html>", 200, "text/html"),
    "hang": hang,
    "drip": drip,
    "closed": closed,
    "empty choices": lambda to: send(to, json.dumps({**json.loads(completion()), "choices": []})),
    "wrong schema": lambda to: send(to, json.dumps({"error": {"message": "overloaded"}})),
    "choices of another kind": lambda to: send(to, json.dumps({**json.loads(completion()), "choices": {"a": 1}})),
    "a list": lambda to: send(to, "[1, 2]"),
    "no text": lambda to: send(to, completion(None)),
}
"""What passes, if one asks again."""


class Endpoint:
    """What the server does and saw.

    Attributes:
        fault: Called with the digest of a request and how often it came; a fault, or None to answer well.
        reply: The text of a good answer to the user's message.
        requests: Of every digest.
        answered: Well, of every digest.
        heads: The headers of every request.
        bodies: Every request.
        most: Requests under way at once.
    """

    def __init__(self) -> None:
        self.fault: Callable[[str, int], Fault | None] = lambda digest, number: None
        self.reply: Callable[[str], str] = lambda message: completion()
        self.requests: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.heads: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.most = self.under_way = 0
        self.lock = threading.Lock()
        self.url = ""

    def serve(self, to: BaseHTTPRequestHandler) -> None:
        body = json.loads(to.rfile.read(int(to.headers["Content-Length"])))
        message = body["messages"][-1]["content"]
        digest = hashlib.sha256(message.encode()).hexdigest()
        with self.lock:
            self.requests[digest] += 1
            number = self.requests[digest]
            self.heads.append({name.lower(): value for name, value in to.headers.items()})
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            fault = self.fault(digest, number)
            if fault is not None:
                fault(to)
                return
            send(to, self.reply(message))
            with self.lock:
                self.answered[digest] += 1
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.lock:
                self.under_way -= 1


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            state.serve(self)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
