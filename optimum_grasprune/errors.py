"""Every error a user can cause. Each carries one clear line; the command line prints it and exits with code 2."""

from __future__ import annotations


class GraspruneError(Exception):
    """Base of all errors raised on bad input; anything else that escapes is a bug of ours."""


class OptionError(GraspruneError):
    """A configuration value is not acceptable.

    option: the field of `GRASPConfig` (`keep_ratio`), which the command line shows as its flag (`--keep-ratio`).
    value: what was given.  reason: what would be acceptable.
    """

    def __init__(self, option: str, value: object, reason: str) -> None:
        self.option, self.value, self.reason = option, value, reason
        super().__init__(f"{option}={value!r}: {reason}")

    @property
    def flag_line(self) -> str:
        """The same line with the option spelled as a command-line flag."""
        return f"--{self.option.replace('_', '-')} {self.value}: {self.reason}"


class BudgetError(OptionError):
    """The budget cannot be met; the reason names the constraint and the nearest feasible value."""


class DataError(GraspruneError):
    """A calibration or evaluation corpus cannot be used."""


class ModelError(GraspruneError):
    """A model folder cannot be read as a causal language model."""


class UnsupportedFamilyError(ModelError):
    """The model is a causal language model, but of a family that has no entry in `families`."""


class CheckpointError(GraspruneError):
    """A checkpoint is damaged, or the output folder cannot be written."""


class PlanError(GraspruneError):
    """A pruning plan does not fit the model that it is replayed on."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and did. Its one line says how it goes on.  code: the exit code."""

    def __init__(self, line: str, code: int) -> None:
        self.code = code
        super().__init__(line)


class GraspruneWarning(UserWarning):
    """Something that a user should know and that stops nothing; the command line prints it as one line."""
