"""A stand-in for the W&B server, on the loopback address: what the real client needs to send the rows of a run.

It keeps each run's history by line number and each artifact by its digest, as the real one does, so that what is sent twice to the
same place counts once. What it does not know is answered by an error, which the client survives.
"""

import gzip
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from wandb_artifacts import ArtifactStore
from wandb_public import PublicApi


@dataclass
class StoredRun:
    """One run as the server has it."""

    about: dict[str, Any]  # the variables of the last UpsertBucket
    lines: dict[int, str] = field(default_factory=dict)  # of wandb-history.jsonl, by line number
    summary: str = "{}"
    exit_code: int | None = None
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(self.lines[number]) for number in sorted(self.lines)]


def forget_login() -> None:
    """Leave this process with a client of W&B that has not logged in anywhere, where it has one."""
    if "wandb" in sys.modules:
        import wandb
        from wandb.sdk.lib import wbauth

        wandb.teardown()
        wbauth.unauthenticate_session(update_settings=False)


class WandbServer(ThreadingHTTPServer):
    """A context manager: answers in threads of its own at `url` until it is left."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, StoredRun] = {}
        self.artifacts = ArtifactStore()
        self.artifacts.url = self.url
        self.public = PublicApi(self.runs)
        self.refuses = False  # answer every operation by an error

    def __enter__(self) -> "WandbServer":
        forget_login()  # of a test before, to another address
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()
        forget_login()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is none of the server's affairs; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data that a GraphQL operation returns, None where it is refused or not known."""
        if self.refuses:
            return None
        if operation == "Viewer":
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if operation == "RunResumeStatus":
            return {
                "model": {
                    "id": "1",
                    "name": variables["project"],
                    "entity": _ENTITY,
                    "bucket": self._bucket(variables["name"]),
                }
            }
        if operation == "UpsertBucket":
            run = self.runs.setdefault(variables["name"], StoredRun({}))
            run.about |= {name: value for name, value in variables.items() if value is not None}
            return {"upsertBucket": {"bucket": self._bucket(variables["name"]), "inserted": not run.lines}}
        if operation == "CreateRunFiles":
            places = [
                {"name": name, "uploadUrl": f"{self.url}/upload/{variables['run']}/{name}"}
                for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": places}}
        return self.artifacts.answer(operation, variables) or self.public.answer(operation, variables)

    def _bucket(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        return {
            "id": "1",
            "name": name,
            "displayName": run.about.get("displayName"),
            "project": {"id": "1", "name": run.about.get("project"), "entity": _ENTITY},
            "summaryMetrics": run.summary,
            "config": run.about.get("config", "{}"),
            "historyLineCount": len(run.lines),
            "historyTail": json.dumps([run.lines[max(run.lines)]] if run.lines else []),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "tags": run.about.get("tags", []),
            "notes": None,
            "wandbConfig": '{"t": {}}',  # without it the client takes the run for one that never started
        }

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """One request of the file stream: lines of the history at their place, the summary, the end."""
        run = self.runs[name]
        for file, chunk in body.get("files", {}).items():
            if file == "wandb-history.jsonl":
                run.lines |= dict(enumerate(chunk["content"], start=chunk["offset"]))
            elif file == "wandb-summary.json":
                run.summary = chunk["content"][-1]
        if body.get("complete"):
            run.exit_code = body["exitcode"]


_ENTITY = {"id": "1", "name": "me"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = asked.get("operationName") or re.findall(r"(?:query|mutation)\s+(\w+)", asked["query"])[0]
            data = self.server.answer(operation, asked.get("variables") or {})
            if data is None:
                self._reply({"errors": [{"message": f"{operation} is not answered here"}]})
            else:
                self._reply({"data": data})
            return
        if self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body))
        self._reply({})

    def do_PUT(self) -> None:
        _, kind, name, file = self.path.split("/", 3)
        if kind == "artifact":
            self.server.artifacts.put(name, file, self._body())
        else:
            self.server.runs[name].files[unquote(file)] = self._body()
        self._reply({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, data: dict[str, Any]) -> None:
        text = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Quiet: standard error belongs to what is tested."""
