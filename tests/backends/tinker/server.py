"""A real server of the Tinker API for tests: SkyRL's, with its JAX backend, on this machine's CPU.

    python tests/backends/tinker/server.py install          # once: .tinker-server/, about 2 GB, some minutes
    python tests/backends/tinker/server.py test             # both lines of the SDK against it; more arguments go to pytest
    python tests/backends/tinker/server.py serve MODEL      # to try things out: prints its address, ends with Ctrl-C

The server has an environment of its own: its packages and this project's need not agree. CALLSHEET_TINKER_SERVER names another place for it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[2]
SDK_LINES = ("0.25.0", "0.38.0")
KEY = "tml-local"
SKYRL = "skyrl==0.4.0"
REQUIREMENTS = (
    "tinker==0.25.0",
    "aiohttp",
    "aiosqlite",
    "cloudpathlib",
    "datasets>=4",
    "fastapi",
    "flax>=0.12.8",
    "jax>=0.8,<1.0",
    "optax>=0.2.5",
    "orjson",
    "pillow",
    "psutil",
    "python-multipart",
    "rich",
    "safetensors",
    "sqlalchemy[asyncio]",
    "sqlmodel",
    "tokenizers>=0.23.1",
    "transformers>=5.6.1,<=5.16.1",
    "typer",
    "uvicorn",
    "xxhash",
    "zstandard",
)
"""What SkyRL's JAX backend imports, without the torch that its package asks for."""
ENGINE = {"max_lora_adapters": 24, "max_lora_rank": 8, "train_micro_batch_size": 4, "sample_max_num_sequences": 16}
"""Batches of few sizes, because each new one is compiled for seconds."""


def place() -> Path:
    """Where the server's environment is, or would be."""
    return Path(os.environ.get("CALLSHEET_TINKER_SERVER") or PROJECT / ".tinker-server")


def installed() -> bool:
    """Whether there is a server to start."""
    return _python(place()).exists()


def install() -> None:
    """Makes the server's environment, and one for each line of the SDK that also sees the packages of whoever runs this."""
    target = place()
    venv.create(target, with_pip=True)
    pip = [str(_python(target)), "-m", "pip", "install", "-q"]
    # SkyRL declares Python 3.12; with skyrl_app.py it runs on 3.11 too, and without the torch, peft and hf_transfer that pip will call missing.
    subprocess.run([*pip, "--no-deps", "--ignore-requires-python", SKYRL], check=True)
    subprocess.run([*pip, *REQUIREMENTS], check=True)
    for line in SDK_LINES:
        own = target / f"sdk-{line}"
        venv.create(own, with_pip=True)
        subprocess.run([str(_python(own)), "-m", "pip", "install", "-q", f"tinker=={line}"], check=True)
        site = next((own / "lib").glob("python*")) / "site-packages"
        (site / "zz_callsheet.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


class Server:
    """One server process with its directory, which outlives it: checkpoints and database are there after a restart."""

    def __init__(self, model: Path, directory: Path, port: int | None = None) -> None:
        self.model = model
        self.directory = directory
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, seconds: float = 120.0) -> None:
        """Starts it and waits until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        cache = Path(os.environ.get("CALLSHEET_TINKER_COMPILED") or place() / "compiled")
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        command = [str(_python(place())), str(HERE / "skyrl_app.py"), "--port", str(self.port), "--backend", "jax"]
        command += ["--base-model", str(self.model), "--backend-config", json.dumps(ENGINE)]
        command += ["--checkpoints-base", str(self.directory / "checkpoints")]
        command += ["--database-url", f"sqlite:///{self.directory / 'server.db'}"]
        with (self.directory / "server.log").open("ab") as log:
            # A session of its own, so that `kill` reaches the engine too.
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + seconds
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                tail = (self.directory / "server.log").read_text(encoding="utf-8", errors="replace")[-2000:]
                self.kill()
                raise RuntimeError(f"the server did not come up: {tail}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """Ends it in good order."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a crash does: API and engine at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except ProcessLookupError:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@contextmanager
def running(model: Path, directory: Path) -> Iterator[Server]:
    """A server that is up, and ended afterwards."""
    server = Server(model, directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test(arguments: Sequence[str]) -> int:
    """Runs the tests that want a server, once with each line of the SDK."""
    if not installed():
        install()
    worst = 0
    for line in SDK_LINES:
        print(f"== tinker {line}", flush=True)
        python = str(_python(place() / f"sdk-{line}"))
        command = [python, "-m", "pytest", "-m", "tinker_server", "tests/backends/tinker", "tests/recipes", *arguments]
        worst = max(worst, subprocess.run(command, cwd=PROJECT, check=False).returncode)
    return worst


def serve(model: str) -> None:
    """Runs a server in the foreground, its files in a directory that is left behind."""
    directory = Path("tinker-server-files").resolve()
    with running(Path(model).resolve(), directory) as server:
        print(f"TINKER_BASE_URL={server.url} TINKER_API_KEY={KEY}    (log: {directory / 'server.log'})", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    match arguments:
        case ["install"]:
            install()
        case ["test", *more]:
            return test(more)
        case ["serve", model]:
            serve(model)
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
