"""Every error a user can cause. Each carries one clear line; the command line prints it and exits with code 2."""

from __future__ import annotations

_LONGEST_VALUE = 200
"""Characters of a value that a message shows: enough to know it by."""


def in_one_line(text: str) -> str:
    """A text as a terminal shows it in one line: what cannot be printed is written as Python escapes it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def first_line(error: Exception) -> str:
    """What an error says, in one line: its first one, and those that it runs on into."""
    text = ""
    for line in filter(None, map(str.strip, str(error).splitlines())):
        text = f"{text} {line}".strip()
        if not text.endswith((":", ",")):
            break
    return text or type(error).__name__


class GraspruneError(Exception):
    """Base of all errors raised on bad input; anything else that escapes is a bug of ours."""


class InputError(GraspruneError):
    """Something that was given cannot be used. Its line is one, whatever stands in what was given."""

    def __init__(self, line: str) -> None:
        super().__init__(in_one_line(line))


class OptionError(InputError):
    """A configuration value is not acceptable.

    option: the field of `GRASPConfig` (`keep_ratio`), which the command line shows as its flag (`--keep-ratio`).
    value: what was given.  reason: what would be acceptable.
    """

    def __init__(self, option: str, value: object, reason: str) -> None:
        self.option, self.value, self.reason = option, value, reason
        super().__init__(f"{option}={_shortened(repr(value))}: {reason}")

    @property
    def flag_line(self) -> str:
        """The same line with the option spelled as a command-line flag."""
        return in_one_line(f"--{self.option.replace('_', '-')} {_shortened(str(self.value))}: {self.reason}")


class BudgetError(OptionError):
    """The budget cannot be met; the reason names the constraint and the nearest feasible value."""


class DataError(InputError):
    """A calibration or evaluation corpus cannot be used."""


class ModelError(InputError):
    """A model folder cannot be read as a causal language model."""


class UnsupportedFamilyError(ModelError):
    """The model is a causal language model, but of a family that has no entry in `families`."""


class CheckpointError(InputError):
    """A checkpoint is damaged, or the output folder cannot be written."""


class ResourceError(InputError):
    """A run needs more memory or disk than there is; the line says how much of which, and what would need less."""


class PlanError(InputError):
    """A pruning plan does not fit the model that it is replayed on."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and did. Its one line says how it goes on.  code: the exit code."""

    def __init__(self, line: str, code: int) -> None:
        self.code = code
        super().__init__(line)


class ProcessEnded(Stopped):
    """Another process of the same run has ended, so that this one does too.

    code: what that one ended with; 1 where it is gone without a word. The line is its own, or says which one is gone.
    """

    def __init__(self, line: str, code: int = 1) -> None:
        super().__init__(line, code)


class GraspruneWarning(UserWarning):
    """Something that a user should know and that stops nothing; the command line prints it as one line."""


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
