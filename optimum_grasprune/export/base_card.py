"""What the card of a base model says that holds for what is made from it: where it is on the Hub, licence, language."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load, try_to_load_from_cache

from ..record.describe import public_name

CARD_NAME = "README.md"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PAGE = "https://huggingface.co/{name}/blob/main/{file}"


@dataclass(frozen=True)
class BaseCard:
    """Of a base model. hub_name: its repository; None where it has none that is known. The others as in its card."""

    hub_name: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: str | tuple[str, ...] | None = None


def base_card(source: str | None) -> BaseCard:
    """What is known of a model by the folder or Hub name that it was loaded from, as far as it lies on this machine.

    Nothing is fetched and nothing fails: a card that is missing or damaged says nothing.
    """
    folder = Path(source) if source and os.path.isdir(source) else None
    name = public_name(source or "")
    hub_name = name if _HUB_NAME.fullmatch(name) else None
    values = _metadata(folder / CARD_NAME if folder else _cached(hub_name))
    license_name = _text(values.get("license"))
    link = _text(values.get("license_link"))
    if link is not None and not link.startswith(("http://", "https://")):
        link = _PAGE.format(name=hub_name, file=link) if hub_name else None
    return BaseCard(
        hub_name=hub_name,
        license=license_name,
        license_name=_text(values.get("license_name")),
        license_link=link,
        language=_texts(values.get("language")),
    )


def _cached(name: str | None) -> Path | None:
    found = None if name is None else try_to_load_from_cache(name, CARD_NAME)
    return Path(found) if isinstance(found, str) else None


def _metadata(card: Path | None) -> dict[str, Any]:
    try:
        return (metadata_load(card) if card is not None and card.is_file() else None) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}


def _text(value: object) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> str | tuple[str, ...] | None:
    if isinstance(value, list) and len(value) > 1 and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    return _text(value)
