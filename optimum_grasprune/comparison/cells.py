"""What a comparison is made of: cells, each one method at one ratio, and the texts to measure on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import RECIPES, EvaluationOptions, GRASPConfig
from ..config.method_options import applicable, owner_of
from ..corpora import Corpus, tokenize
from ..errors import OptionError
from ..methods import get_method, method_names
from ..pruner import GRASPPruner
from ..writing import slug
from .results import EvaluatedText

SAME_FOR_ALL = ("dataset", "dataset_split", "text_column", "bos", "seed")
"""Fields that no recipe decides for itself in a comparison: every cell has the same data and seed."""

_ENTRY = re.compile(
    r"(?P<name>[^+:@]+)(?:\+(?P<compensation>[^+:@]+))?(?::(?P<pattern>[^+@]+))?(?:@(?P<options>[^=,]+=[^,]+(?:,.+)?))?"
)
_OF_THE_COMPARISON = {"keep_ratio", "method", *SAME_FOR_ALL}


@dataclass(frozen=True)
class Cell:
    """One method at one ratio. entry: the method as the user named it.  config: the whole recipe."""

    entry: str
    config: GRASPConfig

    @property
    def name(self) -> str:
        """Names the cell in messages."""
        return f"{self.entry} at {self.config.keep_ratio:g}"

    @property
    def file_name(self) -> str:
        """Name of the file that holds the cell's result."""
        return f"{slug(self.entry)}-{self.config.keep_ratio!r}.json"

    @property
    def calibrated(self) -> bool:
        """Whether the recipe looks at calibration data."""
        return get_method(self.config.method).looks_at_data(self.config)


@dataclass(frozen=True)
class EvaluationText:
    """A text to measure perplexity on. windows_WS: its windows of tokens, shape (W, S), int64."""

    name: str
    corpus: Corpus
    windows_WS: Tensor

    def describe(self) -> EvaluatedText:
        """What identifies it: two evaluations of the same description measure the same tokens."""
        count, window = self.windows_WS.shape
        tokens_hash = hashlib.sha256(self.windows_WS.numpy().tobytes()).hexdigest()
        return EvaluatedText(**self.corpus.describe(), windows=count, window=window, tokens_sha256=tokens_hash)


def evaluation_texts(
    corpora: Mapping[str, Corpus],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    window: int,
    limits: Sequence[int] | None,
    *,
    bos: bool | None = None,
) -> list[EvaluationText]:
    """Corpora, by name, in windows. vocabulary, bos: as of `tokenize`.  limits: windows of each; None for all."""
    return [
        EvaluationText(name, corpus, tokenize(corpus, tokenizer, vocabulary, bos=bos).windows(window, limit))
        for (name, corpus), limit in zip(corpora.items(), limits or (None,) * len(corpora), strict=True)
    ]


def cells_of(entries: Sequence[str], ratios: Sequence[object], options: Mapping[str, object]) -> list[Cell]:
    """Every entry at every ratio, highest first; all are checked before any is returned.

    entries: names of recipes or methods, each as NAME[+COMPENSATION][:PATTERN][@OPTION=VALUE,…].  ratios: shares
    between 0 and 1.
    options: fields of `GRASPConfig` that override the recipes', and options that a method or stage brings along, for
    the entries that it is part of.  Raises OptionError.
    """
    common = {name: value for name, value in options.items() if name in GRASPConfig.model_fields}
    brought = {name: value for name, value in options.items() if name not in common}
    default = RECIPES["default"](**common)
    shared = {**{name: getattr(default, name) for name in SAME_FOR_ALL}, **common}
    cells: dict[tuple[str, float], Cell] = {}
    for entry in entries:
        of_entry = [Cell(entry, _configuration(entry, ratio, shared, brought)) for ratio in ratios]
        for cell in sorted(of_entry, key=lambda cell: -cell.config.keep_ratio):
            cells[entry, cell.config.keep_ratio] = cell
    _check_use(brought, cells.values())
    return list(cells.values())


def _check_use(options: Mapping[str, object], cells: Collection[Cell]) -> None:
    """Raise OptionError for an option that no cell has."""
    used = {name for cell in cells for name in cell.config.model_extra or ()}
    for name, value in options.items():
        if name not in used:
            owner = owner_of(name)
            reason = "extra inputs are not permitted" if owner is None else f"is an option of {owner} alone"
            raise OptionError(name, value, f"{reason}, which is not compared" if owner else reason)


def _configuration(
    entry: str, ratio: object, options: Mapping[str, object], brought: Mapping[str, object]
) -> GRASPConfig:
    match = _ENTRY.fullmatch(entry)
    if not match:
        raise OptionError(
            "methods", entry, "should look like NAME, NAME+COMPENSATION, NAME:PATTERN or NAME@OPTION=VALUE"
        )
    name = match["name"]
    own: dict[str, object] = {field: match[field] for field in ("compensation", "pattern") if match[field]}
    own.update(_own_options(entry, match["options"], set(GRASPConfig.option_names(name))))
    recipe = RECIPES.get(name)
    if recipe is None:
        if name not in method_names():
            known = f"the recipes {', '.join(RECIPES)} and the methods {', '.join(method_names())}"
            raise OptionError("methods", entry, f"no such recipe or method; there are {known}")
        recipe, own["method"] = RECIPES["default"], name
    try:
        config = recipe(**{**options, **own, "keep_ratio": ratio})
        stages = GRASPPruner(config).chain.names  # making one checks that the method supports it
        if extra := applicable(brought, config.method, stages):
            config = config.model_copy(update={**extra, **{name: own[name] for name in extra if name in own}})
    except OptionError as error:
        raise as_given(error, entry, own) from None
    return config


def _own_options(entry: str, text: str | None, known: Collection[str]) -> dict[str, str]:
    """The fields that an entry sets for itself, from OPTION=VALUE,OPTION=VALUE. known: those that there are."""
    fields: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        field = name.strip().removeprefix("--").replace("-", "_")
        if field in _OF_THE_COMPARISON:
            raise OptionError("methods", entry, f"{field} is the same for the whole comparison")
        if field not in known:
            raise OptionError("methods", entry, f"there is no option {field}")
        fields[field] = value.strip()
    return fields


def as_given(error: OptionError, entry: str, own: Mapping[str, object]) -> OptionError:
    """The error in the user's options: one --methods and one --keep-ratios, not each configuration's fields."""
    if error.option == "keep_ratio":
        return OptionError("keep_ratios", error.value, error.reason)
    if error.option in own:
        return OptionError("methods", entry, error.reason)
    return error


def evaluation_windows(length: Any, samples: str | None, corpora: int) -> tuple[int | None, list[int] | None]:
    """Tokens in a window, and the number of windows of each of so many corpora, as given on the command line.

    length: None for the usual number.  samples: one number for all corpora, or one for each with commas between them;
    None for all windows.  Raises OptionError.
    """
    counts: list[Any] = [None] if samples is None else samples.split(",")
    try:
        options = [EvaluationOptions(seq_len=length, num_samples=count) for count in counts]
    except OptionError as error:
        option = {"seq_len": "eval_seq_len", "num_samples": "eval_samples"}[error.option]
        raise OptionError(option, error.value, error.reason) from None
    if len(options) not in (1, corpora):
        raise OptionError("eval_samples", samples, f"should be one number, or {corpora}: one a corpus")
    limits = [option.num_samples for option in options if option.num_samples is not None]
    return options[0].seq_len, limits * (corpora // len(options)) or None
