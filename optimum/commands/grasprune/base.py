"""What the subcommands share: options by the same names, errors as one line, quiet libraries, JSON results."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from optimum.commands.base import BaseOptimumCLICommand

if TYPE_CHECKING:
    from optimum_grasprune.errors import GraspruneError
    from optimum_grasprune.execution import Processes
    from optimum_grasprune.export.outputs import Source
    from optimum_grasprune.model_files import ReadAs

CONFIG = ("-c", "--config")
"""The option that names a file of options."""

Declare = Callable[[argparse.ArgumentParser, Sequence[str]], None]
"""Declares the options of a command. The second argument is the command line after the name of the command."""


class LateParser(argparse.ArgumentParser):
    """A parser whose options are declared when it is the one that parses, and may stand in a file too.

    Options are made from the fields of option classes, which load pydantic, and optimum-cli builds the parsers of all
    commands at every start.
    """

    declare: Declare | None = None

    def _print_message(self, message: str, file: Any = None) -> None:
        if rank_of_several() in (None, 0):
            super()._print_message(message, file)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Declare the options, then parse; those that the command line leaves out come from the file of `-c`."""
        arguments = list(args or ())
        declare, self.declare = self.declare, None
        if (path := self._option_file(arguments)) is None:
            if declare is not None:
                declare(self, arguments)
        else:
            self._parse_with(path, declare, arguments)
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown and rank_of_several():  # of which the parser above this one says so in the first process
            self.exit(2)
        return parsed, unknown

    def _option_file(self, arguments: Sequence[str]) -> str | None:
        early = argparse.ArgumentParser(add_help=False)
        early.add_argument(*CONFIG, nargs="?")
        return early.parse_known_args(arguments)[0].config

    def _parse_with(self, path: str, declare: Declare | None, arguments: Sequence[str]) -> None:
        from optimum_grasprune.config.file_defaults import as_arguments, given_options, set_defaults
        from optimum_grasprune.errors import GraspruneError, OptionError
        from optimum_grasprune.export.recipe import read_recipe

        try:
            file = read_recipe(path)
            if declare is not None:
                declare(self, [*as_arguments(file), *arguments])
            set_defaults(self, file, given_options(self, arguments))
        except OptionError as error:
            self.exit(2, f"{self.prog}: error: {error.flag_line}\n")
        except GraspruneError as error:
            self.exit(2, f"{self.prog}: error: {error}\n")


def declare_late(parser: argparse.ArgumentParser, declare: Declare) -> None:
    """Have options declared once the parser parses; at once where it is no `LateParser`."""
    if isinstance(parser, LateParser):
        parser.declare = declare
    else:
        declare(parser, ())


class Subcommand(BaseOptimumCLICommand):
    """A command whose errors end in one line on standard error and exit code 2. A subclass writes `execute`.

    by_several: whether several processes can do it together.
    peers: those of one launch that do; None where this process is alone.
    """

    by_several = False
    peers: Processes | None = None
    _meets = False

    def run(self) -> None:
        """Run the command; bad input ends in exit code 2, Ctrl-C in 130, SIGTERM in 143 where work is kept."""
        _quieten_libraries()
        from optimum_grasprune.errors import GraspruneError, ProcessEnded
        from optimum_grasprune.progress import restart, tidy

        restart()

        try:
            with self._joined(), self._warnings_as_lines(), tidy():
                self.check_outputs()
                self.execute()
        except GraspruneError as error:
            self.fail(self._line_of(error))
        except ProcessEnded as ended:
            self._end(f"{self.parser.prog}: error: {ended}" if ended.code == 1 else str(ended), ended.code)
        except KeyboardInterrupt as stop:
            self._end(str(stop) or "interrupted", getattr(stop, "code", 130))

    @contextmanager
    def _joined(self) -> Iterator[None]:
        """Inside the block the processes that a launcher started work together; where it started none, this one."""
        if (rank := rank_of_several()) is None:
            yield
            return
        from optimum_grasprune.errors import GraspruneError
        from optimum_grasprune.execution.processes import Launch, joined

        if not self.by_several:
            count = os.environ["WORLD_SIZE"]
            raise GraspruneError(f"export alone can be done by several processes, and {count} were started for this")
        if (launch := Launch.found()) is None:
            raise ValueError("it was started as one of several")
        share_device = getattr(self.args, "device", None) not in (None, "auto", "cuda")
        self._meets = True
        with joined(launch, share_device=share_device) as self.peers, _silence(rank > 0):
            self._meets = False
            try:
                yield
            except GraspruneError as error:
                self.peers.watch.leave(2, f"{self.parser.prog}: error: {self._line_of(error)}")
                raise

    @property
    def from_file(self) -> Mapping[str, str]:
        """How the file of `-c` spells what came from it, by name."""
        return getattr(self.args, "from_file", {})

    def _line_of(self, error: GraspruneError) -> str:
        from optimum_grasprune.errors import OptionError

        if not isinstance(error, OptionError):
            return str(error)
        if (key := self.from_file.get(error.option)) is None:
            return error.flag_line
        return f"--config {self.args.config}: {key} {error.value}: {error.reason}"

    def output_among(self, *lists: str, is_value: Callable[[str, str], bool]) -> str:
        """OUTPUT, which argparse takes for one more value where it follows an option that takes many.

        lists: such options.  is_value: whether a word can only be a value of one, and not a folder.
        """
        args = self.args
        for name in lists:
            values: list[str] = [] if name in self.from_file else getattr(args, name) or []
            named = args.output is not None and "output" not in self.from_file
            if not named and len(values) > 1 and not is_value(name, values[-1]):
                args.output = values.pop()
                break
        if args.output is None:
            self.fail("the following arguments are required: OUTPUT")
        return args.output

    def source_options(self, *sources: str) -> ReadAs:
        """How the named models are to be read, by the options of `load_config`, `load_model` and `load_tokenizer`."""
        from optimum_grasprune.model_files import check_revision

        check_revision(self.args.revision, sources)
        return {"trust_remote_code": self.args.trust_remote_code, "revision": self.args.revision}

    @abstractmethod
    def execute(self) -> None:
        """The work of the command."""

    @abstractmethod
    def sources(self) -> list[Source]:
        """What the command reads from this machine, by the options given."""

    def check_outputs(self, output: str | None = None) -> None:
        """Before hours of work, not after them: neither OUTPUT nor the file of `--json` takes anything that is read.

        Raises GraspruneError.
        """
        from optimum_grasprune.export.outputs import check_apart, check_result_file, local

        sources = [*self.sources(), *local("the recipe", self.args.config)]
        if output is not None:
            check_apart(output, sources)
        if self.args.json:
            check_result_file(self.args.json, sources, output)

    @contextmanager
    def _warnings_as_lines(self) -> Iterator[None]:
        from tqdm import tqdm

        from optimum_grasprune.errors import GraspruneWarning

        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **others: Any) -> None:
            if issubclass(category, GraspruneWarning):  # maybe in the midst of a bar
                tqdm.write(f"{self.parser.prog}: warning: {message}", file=sys.stderr)
            else:
                shown(message, category, *where, **others)

        with warnings.catch_warnings():
            warnings.showwarning = show
            yield

    def fail(self, line: str) -> None:
        """End with exit code 2 and one line."""
        self._end(f"{self.parser.prog}: error: {line}", 2)

    def _end(self, line: str, code: int) -> None:
        """End with one line, of which there is one for all processes that worked together."""
        speaks = self._meets or rank_of_several() in (None, 0)
        if self.peers is not None:
            self.peers.watch.leave(code, line)
            speaks = self.peers.watch.speaks
        if speaks and line:
            print(line, file=sys.stderr)
        sys.exit(code)

    def write_result(self, result: Mapping[str, object]) -> None:
        """Write the result to the file that `--json` names, if it does."""
        if self.args.json:
            from pathlib import Path

            from optimum_grasprune.writing import write_json

            write_json(Path(self.args.json), result)


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """The options of every command."""
    group.add_argument(
        *CONFIG,
        metavar="FILE",
        help="options in a YAML file, by their names; those of the command line go before them. Of export also a "
        "pruned checkpoint or its grasp_config.json: the recipe that it was made by",
    )
    group.add_argument("--revision", metavar="REVISION", help="branch, tag or commit of models that are Hub names")
    group.add_argument("--trust-remote-code", action="store_true", help="run model code that comes with the checkpoint")
    group.add_argument("--json", metavar="FILE", help="also write the result to this file as JSON")


def add_example(parser: argparse.ArgumentParser, example: str) -> None:
    """Show an example under the options of `--help`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"example:\n  {example}"


def is_number(text: str) -> bool:
    """Whether a word of the command line reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def module_for_plots(name: str, otherwise: str = "give --no-plot") -> ModuleType:
    """The named module of ours, which draws; GraspruneError where matplotlib is missing.

    otherwise: what a user does to need none.
    """
    from optimum_grasprune.errors import GraspruneError

    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise GraspruneError(f'plots need matplotlib: pip install "optimum-grasprune[plot]", or {otherwise}') from None


ENDINGS = {"plot": (".png", ".svg"), "html": (".html", ".htm")}
"""Of the files that options draw into."""


def check_drawing(
    files: Mapping[str, Sequence[str]], sources: Sequence[Source], output: str | None = None
) -> ModuleType | None:
    """What draws a checkpoint into files, by the options of `ENDINGS` that name them; None where there are none.

    Raises OptionError for a file that cannot be written, and GraspruneError where matplotlib is missing.
    """
    from optimum_grasprune.errors import OptionError
    from optimum_grasprune.export.outputs import check_result_file

    for option, named in files.items():
        for file in named:
            if not file.endswith(ENDINGS[option]):
                raise OptionError(option, file, f"should end in {' or '.join(ENDINGS[option])}")
            check_result_file(file, sources, output, option=option)
    flags = " and ".join(f"--{option}" for option, named in files.items() if named)
    return module_for_plots("optimum_grasprune.report.pictures", f"leave out {flags}") if flags else None


def rank_of_several() -> int | None:
    """The number of this process among several that `torchrun`, or the like, started; None where it is the only one."""
    rank, count = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "1")
    return int(rank) if rank.isdecimal() and count != "1" else None


@contextmanager
def _silence(wanted: bool) -> Iterator[None]:
    """Inside the block nothing is printed, since another process says it; what escapes is shown all the same."""
    if not wanted:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _quieten_libraries() -> None:
    # Our progress bars and tables are the output; what transformers adds belongs in no terminal. Downloads
    # alone show bars of their own there, since nothing of ours tells how far they are.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from logging import ERROR, getLogger

    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    from optimum_grasprune.progress import no_bar

    logging.set_tqdm_hook(no_bar)
    getLogger("accelerate").setLevel(ERROR)  # it tells of everything that it offloads
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty():
        disable_progress_bars()
