"""Probes against a server of our own."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from graftline.stages.errors import EngineFailed
from graftline.stages.serve.deploy import free_port
from graftline.stages.serve.probing import exchanges


@pytest.fixture
def server():
    """The URL of a server that answers by the request's model."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status = {"base": 200, "nobody": 404, "broken": 503}[asked["model"]]
            answer = {"choices": [{"message": {"content": self.path}}], "usage": {"prompt_tokens": 5}}
            said = answer if status == 200 else {"error": {"message": "no"}}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/tickets"
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_transcript(server):
    requests = [{"model": "base", "messages": []}, {"model": "nobody", "messages": []}]
    found = list(exchanges(server, requests))
    assert [(each["model"], each["status"], each["text"]) for each in found] == [
        ("base", 200, "/tickets/v1/chat/completions"), ("nobody", 404, "no"),
    ]  # fmt: skip
    assert [each["request"] for each in found] == requests
    assert all(each["seconds"] >= 0 for each in found)
    assert [each["usage"] for each in found] == [{"prompt_tokens": 5}, {}]


def test_a_server_error_is_nothing_to_keep(server):
    with pytest.raises(EngineFailed, match="probe of broken: status 503"):
        list(exchanges(server, [{"model": "broken"}]))


def test_nobody_there():
    with pytest.raises(EngineFailed, match="no answer"):
        list(exchanges(f"http://127.0.0.1:{free_port()}", [{"model": "base"}]))
