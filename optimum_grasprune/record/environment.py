"""What a result was made with: the versions of packages and of Python."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

COMPUTING_PACKAGES = ("optimum-grasprune", "torch", "transformers")
"""The packages whose version weights and losses depend on."""


def installed_versions(packages: Iterable[str] = COMPUTING_PACKAGES, *, python: bool = True) -> dict[str, str]:
    """The version of each package that is installed, by its name, and of Python, last, unless it does not matter."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "python": platform.python_version()} if python else found
