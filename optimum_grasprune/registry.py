"""What exists by name: methods, recovery stages, and chains of them. Nothing here loads torch.

A line at the end says in which file a method or stage stands; the file is read when it is first asked for. What is not
listed there can be registered from anywhere, as long as that is imported before the name is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any, Generic, TypeVar

from .errors import OptionError

Class = TypeVar("Class", bound=type)


class Registry(Generic[Class]):
    """Classes by name. kind: what they are, in messages.  option: that chooses one.  reserved: its other values."""

    def __init__(self, kind: str, option: str, reserved: Collection[str] = ()) -> None:
        self.kind, self.option, self.reserved = kind, option, frozenset(reserved)
        self._classes: dict[str, Class] = {}
        self._modules: dict[str, str] = {}
        self._with_options: set[str] = set()

    def declare(self, name: str, module: str, *, own_options: bool = False) -> None:
        """Say which module registers a name when it is imported.

        own_options: whether the class has an `Options` of its own. A configuration that names it loads the module then.
        """
        self._refuse_taken(name)
        self._modules[name] = module
        if own_options:
            self._with_options.add(name)

    def register(self, name: str) -> Callable[[Class], Class]:
        """Class decorator that makes a class available under a name, which can be taken once.

        What it holds as `Options`, a subclass of `MethodOptions` or `StageOptions`, becomes options of `GRASPConfig`.
        """

        def add(cls: Class) -> Class:
            if self._modules.get(name) != cls.__module__ or name in self._classes:
                self._refuse_taken(name)
            elif _options_in(cls) and name not in self._with_options:
                raise ValueError(f"{name} has options of its own, which its line in {__name__} has to say")
            for option in _options_in(cls):
                if (owner := self.owner_of(option)) is not None:
                    raise ValueError(f"an option named {option!r} exists already, of the {self.kind} {owner}")
            self._classes[name] = cls
            return cls

        return add

    def _refuse_taken(self, name: str) -> None:
        if name in self.reserved:
            raise ValueError(f"{name!r} is a value of {self.option} already")
        if name in self.names():
            raise ValueError(f"a {self.kind} named {name!r} exists already: {self.get(name).__qualname__}")

    def names(self) -> tuple[str, ...]:
        """All names, in order of registration."""
        return tuple({**self._modules, **self._classes})

    def get(self, name: str) -> Class:
        """The class of that name; OptionError, with the names that exist, when there is none."""
        if name not in self.names():
            raise OptionError(self.option, name, f"no such {self.kind}; there are {', '.join(self.names())}")
        if name not in self._classes:
            import_module(self._modules[name])
        if name not in self._classes:
            raise ImportError(f"{self._modules[name]} registers no {self.kind} named {name!r}")
        return self._classes[name]

    def options_of(self, name: str) -> type[Any] | None:
        """The options that a name brings along, None if it has none or does not exist."""
        if name not in self._classes and name not in self._with_options:
            return None
        cls: Any = self.get(name)
        return cls.Options if _options_in(cls) else None

    def with_options(self) -> tuple[str, ...]:
        """The names that bring options along, as far as is known without loading anything."""
        return tuple(
            name for name in self.names() if name in self._with_options or _options_in(self._classes.get(name))
        )

    def loaded_with_options(self) -> tuple[str, ...]:
        """Those of them whose module is loaded."""
        return tuple(name for name in self.with_options() if name in self._classes)

    def owner_of(self, option: str) -> str | None:
        """The name that brings this option along, of those that are loaded."""
        for name in self.loaded_with_options():
            if option in _options_in(self._classes[name]):
                return name
        return None


def _options_in(cls: Any) -> tuple[str, ...]:
    return tuple(getattr(getattr(cls, "Options", None), "model_fields", ()))


CHAINS: dict[str, tuple[str, ...]] = {
    "none": (),
    "both": ("least_squares", "scales"),
    "refit": ("least_squares", "diagonals"),
    "rebuild": ("reconstruction", "diagonals"),
}
"""The values of `compensation` that are no single stage: stages that work out weights first, then those that train."""

RECOVERIES: tuple[str, ...] = ("lora", "distill")
"""The stages that train the weights themselves. `recover` asks for one, after all that `compensation` names."""

METHODS: Registry[type[Any]] = Registry("method", "method")
"""The pruning methods, and below in which file of `methods/` each stands."""

STAGES: Registry[type[Any]] = Registry("stage", "compensation", reserved=("auto", *CHAINS))
"""The recovery stages, and below in which file of `recovery/` each stands."""

METHODS.declare("block_influence", "optimum_grasprune.methods.block_influence")
METHODS.declare("ddp", "optimum_grasprune.methods.ddp", own_options=True)
METHODS.declare("fasp", "optimum_grasprune.methods.fasp")
METHODS.declare("fisher", "optimum_grasprune.methods.fisher")
METHODS.declare("flap", "optimum_grasprune.methods.flap")
METHODS.declare("grasprune", "optimum_grasprune.methods.grasprune")
METHODS.declare("magnitude", "optimum_grasprune.methods.magnitude")
METHODS.declare("random", "optimum_grasprune.methods.random")
METHODS.declare("statistical", "optimum_grasprune.methods.statistical")
METHODS.declare("taylor", "optimum_grasprune.methods.taylor")
METHODS.declare("wanda_sp", "optimum_grasprune.methods.wanda_sp")

STAGES.declare("scales", "optimum_grasprune.recovery.scales")
STAGES.declare("least_squares", "optimum_grasprune.recovery.least_squares")
STAGES.declare("bias", "optimum_grasprune.recovery.bias")
STAGES.declare("energy", "optimum_grasprune.recovery.energy")
STAGES.declare("reconstruction", "optimum_grasprune.recovery.reconstruction")
STAGES.declare("diagonals", "optimum_grasprune.recovery.diagonals")
STAGES.declare("lora", "optimum_grasprune.recovery.lora")
STAGES.declare("distill", "optimum_grasprune.recovery.distill")


def chain_names() -> tuple[str, ...]:
    """What `compensation` can be beside "auto": a chain, or a stage alone."""
    stages = (name for name in STAGES.names() if name not in RECOVERIES)
    return (*(name for name in CHAINS if not CHAINS[name]), *stages, *(name for name in CHAINS if CHAINS[name]))


def stages_in(chain: str) -> tuple[str, ...]:
    """Names of the stages of a chain, in order. chain: one of `chain_names`."""
    return CHAINS.get(chain, (chain,))
