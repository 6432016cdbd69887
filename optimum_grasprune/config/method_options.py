"""Options that a method or a recovery stage brings along, in its own file.

They stand beside the common ones in `GRASPConfig`, as attributes, on the command line and in `grasp_config.json`, while
the method is the chosen one, or the stage is named in `compensation`; an option of a stage that the method chooses by
itself may be given too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..errors import OptionError
from ..registry import METHODS, STAGES, stages_in
from .base import Options

_OF_THE_COMMANDS = frozenset(
    [
        "help",
        "model",
        "output",
        "recipe",
        "plan",
        "nested",
        "overwrite",
        "dry_run",
        "ignore_estimate",
        "resume",
        "runner",
        "max_memory",
        "max_shard_size",
        "revision",
        "trust_remote_code",
        "json",
        "config_fields",
        "methods",
        "keep_ratios",
        "evaluate",
        "eval_seq_len",
        "eval_samples",
        "no_plot",
        "share_gates",
        "last_list",
        "config",
        "from_file",
        "push_to_hub",
        "private",
        "plot",
    ]
)
"""What the command line calls other things by."""


class OwnOptions(Options):
    """Base of `MethodOptions` and `StageOptions`."""

    common: ClassVar[frozenset[str]] = frozenset()
    """Names that are taken: the fields of `GRASPConfig`."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a name that every configuration has already."""
        if taken := sorted((OwnOptions.common | _OF_THE_COMMANDS) & set(cls.model_fields)):
            raise ValueError(f"an option named {taken[0]!r} exists already, common to all methods")


class MethodOptions(OwnOptions):
    """Options of one method: the class in `Method.Options`."""


class StageOptions(OwnOptions):
    """Options of one recovery stage: the class in `Options` of what `STAGES.register` registers."""


def validated(common: Mapping[str, object], given: Mapping[str, object]) -> dict[str, Any]:
    """The options that are no common ones, validated, with the defaults of those of the same owner.

    common: the common options as they were given.  given: the others.  Raises OptionError.
    """
    values: dict[str, Any] = {}
    for options in _in_force(common, given):
        values.update(vars(options(**{name: given[name] for name in options.model_fields if name in given})))
    for name in given:
        if name not in values:
            owner = METHODS.owner_of(name)
            reason = "extra inputs are not permitted" if owner is None else f"is an option of the method {owner} alone"
            raise OptionError(name, given[name], reason)
    return values


def own_names(method: str) -> tuple[str, ...]:
    """Names of the options that a method and the stages bring along."""
    classes = [METHODS.options_of(method), *map(STAGES.options_of, STAGES.with_options())]
    return tuple(name for options in classes if options is not None for name in options.model_fields)


def applicable(given: Mapping[str, object], method: str, stages: Collection[str]) -> dict[str, Any]:
    """Those of the options that a method or one of the stages brings along."""
    classes = [METHODS.options_of(method), *map(STAGES.options_of, stages)]
    names = {name for options in classes if options is not None for name in options.model_fields}
    return {name: value for name, value in given.items() if name in names}


def owner_of(option: str) -> str | None:
    """What brings an option along, as in "the method flap"; None where nothing does."""
    _load_all()
    for registry in (METHODS, STAGES):
        if (owner := registry.owner_of(option)) is not None:
            return f"the {registry.kind} {owner}"
    return None


def load_owners(options: Iterable[str]) -> None:
    """Load whatever may bring along those of the options that nothing else is called by."""
    if not set(options) <= OwnOptions.common | _OF_THE_COMMANDS:
        _load_all()


def _load_all() -> None:
    for registry in (METHODS, STAGES):
        for name in registry.with_options():
            registry.get(name)


def _in_force(common: Mapping[str, object], given: Mapping[str, object]) -> Iterator[type[OwnOptions]]:
    chosen = METHODS.options_of(str(common.get("method")))
    if chosen is not None:
        yield chosen
    if set(given) - set(chosen.model_fields if chosen else ()):  # whose they are is known of what is loaded
        _load_all()
    stages = {*stages_in(str(common.get("compensation"))), *map(STAGES.owner_of, given)}
    for name in STAGES.with_options():
        if name in stages and (options := STAGES.options_of(name)) is not None:
            yield options
