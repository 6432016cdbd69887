"""A real `vllm serve`, started for the time of a block and always stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GraspruneError

_STOP_SECONDS = 20
_LOG_LINES = 12


class ServerError(GraspruneError):
    """The server did not start, or stopped; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Completion:
    """What a model went on with."""

    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Server:
    """A running server. url: where it listens.  model: the name it serves the model by."""

    url: str
    model: str

    def complete(self, prompt: str | list[int], max_tokens: int = 32) -> Completion:
        """The greedy continuation of a prompt, given as text or as tokens."""
        request = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
        choice = self._post("/v1/completions", {**request, "return_token_ids": True})["choices"][0]
        return Completion(choice["text"], choice["token_ids"])

    def kv_cache_tokens(self) -> int:
        """How many tokens the KV cache holds, as the server's metrics say."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:
            metrics = response.read().decode()
        match = re.search(r'vllm:cache_config_info\{[^}]*kv_cache_size_tokens="(\d+)"', metrics)
        if match is None:
            raise ServerError("the server's metrics do not say how many tokens the KV cache holds")
        return int(match[1])

    def _post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)


@contextmanager
def served(
    model: str | os.PathLike[str],
    log: Path,
    *,
    flags: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    start_seconds: float = 600,
) -> Iterator[Server]:
    """Serve a checkpoint on a free port of this machine until the block ends, however it ends.

    log: file for the server's output.  flags: more flags for `vllm serve`.  environment: variables set on top.
    Raises ServerError when the server is not healthy within `start_seconds`.
    """
    port = _free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # the engine runs in children: they are stopped together, as a group
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", str(model))
        _wait_until_healthy(server, process, log, start_seconds)
        yield server
    finally:
        _stop(process)


def _wait_until_healthy(server: Server, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"the server ended with code {process.returncode} before it was ready{_end_of(log)}")
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise ServerError(f"the server was not ready after {seconds:.0f} s{_end_of(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "; the end of its log:\n" + "\n".join(lines) if lines else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
