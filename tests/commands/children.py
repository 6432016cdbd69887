"""Commands in processes of their own, which need not import torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_SERVER = """
import json, os, sys, traceback
import optimum_grasprune.comparison, optimum_grasprune.report, optimum_grasprune.export.checkpoint
from optimum.commands.optimum_cli import main
%s
for line in sys.stdin:
    order, *given = json.loads(line)
    if order == "wait":
        print(os.waitstatus_to_exitcode(os.waitpid(given[0], 0)[1]), flush=True)
        continue
    child = os.fork()
    if not child:
        output, errors, environment, *sys.argv = given
        os.environ.update(environment)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
        if errors is not None:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        code = 1
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
"""


class Children:
    """A process that has imported everything, and a child of it for each command.

    setup: Python that it runs first.
    """

    def __init__(self, setup: str = "") -> None:
        command = [sys.executable, "-c", _SERVER % setup]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(
        self,
        arguments: Sequence[object],
        output: str | Path = os.devnull,
        errors: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start `optimum-cli grasprune` with these arguments; its process id.

        output, errors: files for what it prints.  environment: variables that it has beside those of this process.
        """
        files = str(output), None if errors is None else str(errors)
        return self._ask("start", *files, dict(environment or {}), "optimum-cli", "grasprune", *map(str, arguments))

    def wait(self, child: int) -> int:
        """The exit code of a command, when it has ended; the negative number of the signal that ended it."""
        return self._ask("wait", child)

    def close(self) -> None:
        """End the process that waits for commands."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def _ask(self, *order: object) -> int:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())
