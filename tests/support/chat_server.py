"""A server on this machine that speaks the protocol of chat completions, well or badly, as the model that is asked for says."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.times: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model, text = asked["model"], asked["messages"][0]["content"]
        self.server.asked.append(asked)
        self.server.keys.add(self.headers["Authorization"])
        self.server.times[text] += 1
        if self.path != "/v1/chat/completions":
            return self._send(404, {"error": {"message": "no such place"}})
        if model == "slow":
            time.sleep(1.0)
        if model.isdigit():
            key = self.headers["Authorization"].removeprefix("Bearer ")
            return self._send(int(model), {"error": {"message": f"the key {key}\n is not liked"}})
        if model == "flaky" and self.server.times[text] == 1:
            return self._send(500, {"error": {"message": "once"}})
        if model == "garbage":
            return self._send(200, b"<html>not JSON")
        if model == "empty":
            return self._send(200, {"object": "chat.completion", "choices": []})
        return self._send(200, _answer(model, text))

    def _send(self, status: int, body: dict[str, Any] | bytes) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _answer(model: str, text: str) -> dict[str, Any]:
    """Says how many others it heard; ``uncounted`` says nothing of tokens, ``silent`` nothing at all."""
    heard = text.count("Answer ")
    message = {"role": "assistant", "content": None if model == "silent" else f"after {heard} I say 1,0{heard}.5"}
    found = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
    found["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
    if model != "uncounted":
        found["usage"] = {"prompt_tokens": len(text.split()), "completion_tokens": 5, "total_tokens": 0}
    return found


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
