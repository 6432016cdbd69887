"""A real `vllm serve`, started for the time of a block and always stopped."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import GraspruneError, OptionError
from ...processes import supervised
from .launch import VLLM
from .telemetry import cache_config, reason_in

_HOST = "127.0.0.1"
_LOG_LINES = 12
_ANSWER_SECONDS = 1800
_NOISE = re.compile(r"nanobind|^ - (?:leaked |\.\.\. skipped)|resource_tracker|^\s+warnings\.warn\(| Route: ")


class ServerError(GraspruneError):
    """The server did not start, or stopped; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Completion:
    """What a model went on with."""

    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Server:
    """A running server.

    url: where it listens.  model: the name it serves the model by.  log: file of its output.
    command: how it was started.  seconds: from the start to the first healthy answer.
    """

    url: str
    model: str
    log: Path
    command: tuple[str, ...]
    seconds: float

    def complete(self, prompt: str | list[int], max_tokens: int = 32) -> Completion:
        """The greedy continuation of a prompt, given as text or as tokens."""
        request = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
        choice = self._post("/v1/completions", {**request, "return_token_ids": True})["choices"][0]
        return Completion(choice["text"], choice["token_ids"])

    def warm_up(self, prompt_tokens: int, output_tokens: int, concurrency: int) -> None:
        """Answer so many requests of such lengths at once, and forget the answers; ServerError when one fails."""
        request = {"model": self.model, "prompt": [1] * prompt_tokens, "max_tokens": output_tokens, "ignore_eos": True}
        try:
            with ThreadPoolExecutor(concurrency) as pool:
                list(pool.map(lambda _: self._post("/v1/completions", request), range(concurrency)))
        except OSError as error:
            raise ServerError(f"a warm-up request failed: {_answer(error)}{end_of(self.log)}") from None

    def metrics(self) -> str:
        """What the server counts, in Prometheus' text format; ServerError when it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
                return response.read().decode()
        except OSError as error:
            raise ServerError(f"the server gives no metrics: {error}{end_of(self.log)}") from None

    def kv_cache_tokens(self) -> int:
        """How many tokens the KV cache holds, as the server's metrics say."""
        tokens = cache_config(self.metrics()).tokens
        if tokens is None:
            raise ServerError("the server's metrics do not say how many tokens the KV cache holds")
        return tokens

    def _post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as response:
            return json.load(response)


@contextmanager
def served(
    model: str | os.PathLike[str],
    log: Path,
    *,
    flags: Sequence[str] = (),
    environment: Mapping[str, str | None] | None = None,
    port: int | None = None,
    start_seconds: float = 600,
) -> Iterator[Server]:
    """Serve a checkpoint on this machine until the block ends, however it ends.

    log: file for the server's output.  flags: more flags for `vllm serve`.  environment: variables set on top; None
    removes one.  port: where it listens, a free one by default.
    Raises ServerError when the server is not healthy within `start_seconds`, OptionError when the port is taken.
    """
    if port is not None:
        check_port(port)
    url = f"http://{_HOST}:{port or _free_port()}"
    arguments = ("serve", str(model), "--host", _HOST, "--port", url.rpartition(":")[2], *flags)
    start = time.monotonic()
    with supervised([*VLLM, *arguments], log, environment) as process:
        _wait_until_healthy(url, process, log, start_seconds)
        yield Server(url, str(model), log, ("vllm", *arguments), time.monotonic() - start)


def check_port(port: int) -> None:
    """Raise OptionError when nothing can listen on this port."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given up is free
            probe.bind((_HOST, port))
    except (OSError, OverflowError) as error:
        raise OptionError("port", port, f"cannot be used: {getattr(error, 'strerror', None) or error}") from None


def end_of(log: Path) -> str:
    """The last lines of a log as the end of a message, without what every vLLM process says when it ends."""
    written = log.read_text(errors="replace").splitlines() if log.is_file() else []
    lines = [line for line in written if line.strip() and not _NOISE.search(line)][-_LOG_LINES:]
    return "; the end of its log:\n" + "\n".join(lines) if lines else ""


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            what = f"the server ended with code {process.returncode} before it was ready"
            raise ServerError(f"{cause_in(log)}{what}{end_of(log)}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise ServerError(f"the server was not ready after {seconds:.0f} s{end_of(log)}")


def cause_in(log: Path) -> str:
    """What a log says was the cause, as the beginning of a message; empty where it says nothing."""
    reason = reason_in(log.read_text(errors="replace"))
    return f"{reason}: " if reason else ""


def _answer(error: OSError) -> str:
    """What a server said of a request that it refused; the error itself where it said nothing."""
    return error.read().decode(errors="replace")[:500] if isinstance(error, urllib.error.HTTPError) else str(error)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]
