"""Drive Firefox without a driver program, over WebDriver BiDi (W3C), with a WebSocket."""

import itertools
import json
import re
import subprocess
import time

import websocket


class Firefox:
    """A headless Firefox with a profile of its own, and everything it complained of."""

    def __init__(self, program, profile):
        # No network: whatever is asked for goes to a proxy that is not there.
        (profile / "user.js").write_text(
            'user_pref("network.proxy.type", 1);\n'
            'user_pref("network.proxy.http", "127.0.0.1");\n'
            'user_pref("network.proxy.http_port", 9);\n'
            'user_pref("network.proxy.ssl", "127.0.0.1");\n'
            'user_pref("network.proxy.ssl_port", 9);\n'
            'user_pref("datareporting.policy.dataSubmissionEnabled", false);\n'
        )
        self.process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-remote",
                "--profile",
                str(profile),
                "--remote-debugging-port",
                "0",
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.numbers = itertools.count(1)
        self.said, self.asked = [], []
        self.socket = websocket.create_connection(
            f"{self._address()}/session", timeout=120, suppress_origin=True
        )
        self.command("session.new", capabilities={})
        self.command("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        tree = self.command("browsingContext.getTree")
        self.context = tree["contexts"][0]["context"]

    def _address(self):
        for line in self.process.stderr:
            found = re.search(r"WebDriver BiDi listening on (ws://\S+)", line)
            if found:
                return found[1]
        raise RuntimeError("Firefox did not say where it listens.")

    def command(self, method, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == number:
                if answer.get("type") == "error":
                    raise RuntimeError(answer["message"])
                return answer["result"]
            params_of = answer.get("params") or {}
            if answer.get("method") == "log.entryAdded" and params_of.get("level") == "error":
                self.said.append(params_of.get("text"))
            if answer.get("method") == "network.beforeRequestSent":
                self.asked.append(params_of["request"]["url"])

    def open(self, path, wait=120):
        self.command(
            "browsingContext.navigate", context=self.context, url=path.as_uri(), wait="complete"
        )
        end = time.monotonic() + wait
        while not self.run("document.body.dataset.ready || document.body.dataset.failed || ''"):
            if time.monotonic() > end:
                raise TimeoutError("the page is not drawn")
            time.sleep(0.2)

    def run(self, expression):
        result = self.command(
            "script.evaluate",
            expression=expression,
            awaitPromise=True,
            target={"context": self.context},
        )
        if result["type"] == "exception":
            raise RuntimeError(result["exceptionDetails"]["text"])
        return result["result"].get("value")

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
        self.process.stderr.close()
