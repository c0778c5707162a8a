"""A hub on this machine: serves the checkpoints under a folder as ORGANISATION/NAME.

    python hub.py FOLDER PORT

As much of the Hugging Face Hub as loading a model asks for. Standard library only.
"""

import hashlib
import json
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "1".rjust(40, "0")


def n_parameters(folder):
    """How many numbers the safetensors files of a checkpoint hold, from their headers alone."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for size in tensor["shape"]:
                    count *= size
                total += count
    return total


def about(name, folder):
    parameters = n_parameters(folder)
    return {
        "_id": "1",
        "id": name,
        "modelId": name,
        "sha": COMMIT,
        "private": False,
        "gated": False,
        "disabled": False,
        "tags": ["transformers", "safetensors"],
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": path.name} for path in sorted(folder.iterdir())],
        "safetensors": {"parameters": {"F32": parameters}, "total": parameters},
    }


def listing(folder):
    return [
        {
            "type": "file",
            "path": path.name,
            "size": path.stat().st_size,
            "oid": hashlib.sha1(path.name.encode()).hexdigest(),
        }
        for path in sorted(folder.iterdir())
    ]


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root = Path()

    def log_message(self, form, *values):
        sys.stderr.write("hub " + form % values + "\n")

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def missing(self, kind):
        self.answer(404, b'{"error":"not found"}', X_Error_Code=kind, X_Repo_Commit=COMMIT)

    def do_GET(self):
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            parts = parts[2:]
            kind = "tree" if parts[2:3] == ["tree"] else "about"
        else:
            kind = "file"
        folder = self.root.joinpath(*parts[:2])
        if len(parts) < 2 or not (folder / "config.json").is_file():
            return self.missing("RepoNotFound")
        if kind == "file":
            path = folder.joinpath(*parts[4:])
            if parts[2:3] != ["resolve"] or not path.is_file():
                return self.missing("EntryNotFound")
            body = path.read_bytes()
            tag = f'"{hashlib.sha1(body).hexdigest()}"'
            return self.answer(200, body, X_Repo_Commit=COMMIT, ETag=tag, Accept_Ranges="bytes")
        if kind == "tree" and len(parts) > 4:
            return self.missing("EntryNotFound")
        found = listing(folder) if kind == "tree" else about("/".join(parts[:2]), folder)
        return self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

    def do_HEAD(self):
        self.do_GET()


if __name__ == "__main__":
    Hub.root = Path(sys.argv[1]).resolve()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Hub).serve_forever()
