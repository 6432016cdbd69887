"""Registration with transformers' Auto classes as soon as those are imported, and not before.

Importing them takes seconds, and torch with them, so importing this package does not. Whoever wants to load a model
imports them anyway: an import hook sees that and then imports `families`, which registers what pruned checkpoints load
as.

Nothing may be imported in the midst of that: transformers' modules import each other in circles, and half of one is
often all that there is. The hook waits for the end of the outermost import of a module of transformers.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_AUTO_CLASSES = "transformers.models.auto.configuration_auto"
"""The module that all Auto classes import."""


def register_when_loaded() -> None:
    """Register now if the Auto classes are loaded, else once they are; may be called repeatedly."""
    if _AUTO_CLASSES in sys.modules:
        import_module(".families", __package__)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """Finds nothing by itself: it has the end of an outermost import of transformers reported."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "transformers" or getattr(self._of_thread, "importing", False):
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Reporting(spec.loader, self)
                return spec
        return None

    def execute(self, loader: Loader, module: ModuleType) -> None:
        """Execute an outermost module, then register if the Auto classes have come with it."""
        self._of_thread.importing = True
        try:
            loader.exec_module(module)
        finally:
            self._of_thread.importing = False
        if _AUTO_CLASSES in sys.modules:
            with suppress(ValueError):  # another thread was first
                sys.meta_path.remove(self)
            import_module(".families", __package__)


class _Reporting(Loader):
    """Stands in for a module's own loader until the module is executed."""

    def __init__(self, loader: Loader, watch: _Watch) -> None:
        self._loader, self._watch = loader, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._watch.execute(self._loader, module)
