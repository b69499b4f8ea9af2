"""A stand-in for a SandboxFusion server: its `/run_code`, on the loopback interface, with plain processes behind it and no isolation at all."""

from __future__ import annotations

import base64
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Fault = Callable[[int], tuple[int, Any] | None]
"""Request number, from 0, to the status and body given instead of an outcome."""


def run_code(body: dict[str, Any], running: set[subprocess.Popen[bytes]]) -> dict[str, Any]:
    """What the real one does, as far as the API says it. `running`: programs under way, which whoever stops serving ends."""
    if body["language"] != "python":
        return {"status": "SandboxError", "message": f"no language {body['language']}", "run_result": None}
    with tempfile.TemporaryDirectory() as directory:
        for path, content in body["files"].items():
            target = Path(directory, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(base64.b64decode(content))
        main = Path(directory, "main.py")
        main.write_text(body["code"], encoding="utf-8")
        limit = body["memory_limit_MB"]

        def restrict() -> None:
            if limit > 0:
                resource.setrlimit(resource.RLIMIT_AS, ((limit + 64) << 20,) * 2)

        began = time.monotonic()
        with (Path(directory, ".out")).open("w+b") as out, (Path(directory, ".err")).open("w+b") as err:
            process = subprocess.Popen(
                [sys.executable, str(main)],
                cwd=directory,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                preexec_fn=restrict,  # noqa: PLW1509
                start_new_session=True,
            )
            running.add(process)
            result: dict[str, Any] = {"status": "Finished", "return_code": None}
            try:
                process.communicate(body["stdin"].encode(), timeout=body["run_timeout"])
                result["return_code"] = process.returncode
            except subprocess.TimeoutExpired:
                result["status"] = "TimeLimitExceeded"
            finally:
                end_all(process, directory)
                running.discard(process)
            for name, file in (("stdout", out), ("stderr", err)):
                file.seek(0)
                result[name] = file.read(1 << 20).decode("utf-8", "replace")
            result["execution_time"] = time.monotonic() - began
    status = "Success" if result["return_code"] == 0 else "Failed"
    return {"status": status, "message": "", "compile_result": None, "run_result": result, "files": {}}


def end_all(process: subprocess.Popen[bytes], directory: str) -> None:
    """Ends the program, and whatever it started: what works in its directory, sessions of their own included."""
    process.kill()
    process.wait()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(directory):
                os.kill(int(entry.name), signal.SIGKILL)


@contextmanager
def serving(fault: Fault = lambda number: None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and the bodies of the requests that it gets."""
    requests: list[dict[str, Any]] = []
    running: set[subprocess.Popen[bytes]] = set()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10.0

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(requests)
                requests.append(body)
            status, answer = fault(number) or (200, None)
            answer = run_code(body, running) if answer is None else answer
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            try:
                self.send_response(status if self.path == "/run_code" else 404)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:  # the client has given up
                pass

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # closing waits for them: no program outlives the test that asked for it

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        for process in tuple(running):
            process.kill()
        server.server_close()
        thread.join()
