"""A server that speaks NDIF's protocol and does as a script says: for what can go wrong.

It answers in order what its script holds, one entry a job: "run" runs it, in a process of
`loopback`; "ok" runs nothing and sends the result it was made with; anything else is a fault.
"""

import base64
import hashlib
import io
import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import torch
import zstandard

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(payload, *, binary=False):
    """One websocket frame, as servers send it: unmasked."""
    head = bytes([0x82 if binary else 0x81])
    size = len(payload)
    if size < 126:
        return head + bytes([size]) + payload
    if size < 2**16:
        return head + bytes([126]) + struct.pack(">H", size) + payload
    return head + bytes([127]) + struct.pack(">Q", size) + payload


def result(values):
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return zstandard.ZstdCompressor().compress(buffer.getvalue())


def body_of(parts, name):
    """One part of a request's body."""
    mark = parts[: parts.index(b"\r\n")]
    for part in parts.split(mark):
        head, _, content = part.partition(b"\r\n\r\n")
        if f'name="{name}"'.encode() in head:
            return content.removesuffix(b"\r\n")
    raise KeyError(name)


class Run(NamedTuple):
    """A job that is to be run."""

    blob: bytes
    envelope: dict
    job: str


class FakeNDIF:
    """The server.

    Args:
        script: What to do with each job, the last entry with all further ones: "run", "ok",
            "url" (the result lies elsewhere), "drop" (the connection breaks), "end" (it is ended
            as the protocol says), "silent" (nothing comes), a number (the HTTP status of the
            submission), or a text (the description of an ERROR).
        values: What a job that goes well sends back.
        facts: What GET paths answer: JSON, bytes, or an HTTP status.
        worker: The process that runs jobs.
        checkpoints: The folder of each model that it runs, by name.
    """

    def __init__(self, script, values=None, facts=None, worker=None, checkpoints=None):
        self.script, self.values = list(script), result(values or {})
        self.worker, self.checkpoints = worker, checkpoints or {}
        self.facts = {"/env": {"packages": {}, "python_version": ""}, **(facts or {})}
        self.posts, self.keys = [], []
        self.answered = threading.Condition()
        self.pending = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.keys.append(self.headers.get("ndif-api-key"))
                if self.path == "/subscribe":
                    return outer.subscribe(self)
                if self.path == "/result" and self.path not in outer.facts:
                    return self.plain(200, outer.values)
                fact = outer.facts.get(self.path, 404)
                if isinstance(fact, bytes):
                    return self.plain(200, fact)
                if isinstance(fact, int):
                    return self.plain(fact, json.dumps({"detail": "said so"}).encode())
                return self.plain(200, json.dumps(fact).encode())

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.keys.append(self.headers.get("ndif-api-key"))
                outer.submit(self, body)

            def plain(self, code, body):
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def subscribe(self, handler):
        accept = base64.b64encode(
            hashlib.sha1((handler.headers["Sec-WebSocket-Key"] + MAGIC).encode()).digest()
        )
        handler.connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        number = str(len(self.pending))
        with self.answered:
            self.pending[number] = None
        handler.connection.sendall(frame(json.dumps({"session_id": number}).encode()))
        with self.answered:
            self.answered.wait_for(lambda: self.pending[number] is not None, 20)
            act = self.pending[number]
        self.act(handler.connection, act)
        handler.close_connection = True

    def submit(self, handler, body):
        act = self.script[min(len(self.posts), len(self.script) - 1)]
        envelope = json.loads(body[body.index(b"{") : body.index(b"}\r\n") + 1])
        self.posts.append(envelope)
        if act == "run":
            act = Run(body_of(body, "blob"), envelope, f"job-{len(self.posts)}")
        if isinstance(act, int):
            said = f"key {handler.headers.get('ndif-api-key')} has status {act}"
            handler.plain(act, json.dumps({"detail": said}).encode())
        else:
            handler.plain(200, self.status("RECEIVED", "received").encode())
        if isinstance(act, Run) and not envelope["session_id"]:
            done, found = self.run(act)
            self.facts[f"/result-{act.job}"] = result(found) if done else b""
            told = {"data": f"{self.url}/result-{act.job}"} if done else {"description": found}
            state = "COMPLETED" if done else "ERROR"
            self.facts[f"/response/{act.job}"] = {"id": act.job, "status": state, **told}
        with self.answered:
            self.pending[envelope["session_id"]] = act
            self.answered.notify_all()

    def run(self, act):
        """Have a job run; gives whether it went well, and what it saved or its traceback."""
        name = json.loads(act.envelope["model_key"].partition(":")[2])["repo_id"]
        if name not in self.checkpoints:
            return False, f"Could not deploy this model. There is no {name}."
        folder = str(self.checkpoints[name])
        kind, found = self.worker.ask(folder, act.blob, act.envelope["env"])
        return kind == "ok", found

    def status(self, name, description, **further):
        job = f"job-{len(self.posts)}"
        return json.dumps({"id": job, "status": name, "description": description, **further})

    def act(self, connection, act):
        if isinstance(act, int):
            return
        connection.sendall(frame(self.status("QUEUED", "position 1").encode()))
        if isinstance(act, Run):
            done, act = self.run(act)
            if done:
                self.values, act = result(act), "ok"
        if act == "drop":
            connection.shutdown(socket.SHUT_RDWR)
        elif act == "end":
            connection.sendall(bytes([0x88, 0]))
        elif act == "silent":
            with self.answered:
                self.answered.wait(5)
        elif act == "url":
            done = self.status("COMPLETED", "done", data=f"{self.url}/result")
            connection.sendall(frame(done.encode()))
        elif act == "ok":
            buffer = io.BytesIO()
            message = {"id": "job-1", "status": "COMPLETED", "description": ""}
            torch.save({**message, "data": self.values}, buffer)
            connection.sendall(frame(buffer.getvalue(), binary=True))
        else:
            connection.sendall(frame(self.status("ERROR", act).encode()))
