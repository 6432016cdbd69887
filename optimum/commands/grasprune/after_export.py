"""What `export` does with checkpoints that are written: it measures them, completes their cards, and sends them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimum_grasprune.comparison.beside import BesideDense
    from optimum_grasprune.config import GRASPConfig
    from optimum_grasprune.export.card import CardFacts
    from optimum_grasprune.export.results import MeasuredText
    from optimum_grasprune.model_files import ReadAs
    from optimum_grasprune.pruned import PrunedModel
    from optimum_grasprune.record import Record, ReportNumbers

_OF_MEASURING = ("eval_seq_len", "eval_samples")


@dataclass(frozen=True)
class Written:
    """A checkpoint in its folder. facts: for its card, the repository that it is sent to among them.

    numbers: for its page.  page: the file of that, where one is asked for.
    """

    folder: str
    record: Record
    facts: CardFacts
    numbers: ReportNumbers | None = None
    page: str | None = None

    @classmethod
    def of(cls, pruned: PrunedModel, folder: str, repository: str | None, page: str | None) -> Written:
        """What is still to be known of a model when it is in memory no more."""
        return cls(folder, pruned.record, replace(pruned.card_facts, repository=repository), pruned.numbers, page)

    def to_dict(self, measured: Sequence[MeasuredText]) -> dict[str, object]:
        """What the result says of it: its record but for the plan, and what was measured, if anything was."""
        plans = ("plan", "trained_before")  # lists of units, which grasp_config.json has
        record = {name: value for name, value in self.record.to_dict().items() if name not in plans}
        return {**record, **({"measured": [text.to_dict() for text in measured]} if measured else {})}


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """The options of measuring and sending."""
    group = parser.add_argument_group("Results and sharing")
    group.add_argument(
        "--evaluate",
        metavar="NAME=PATH[SLICE]",
        nargs="+",
        action="extend",
        help="then measure perplexity on these corpora, the dense model beside the pruned one, for the model card; as "
        "in 'stories=stories.txt[90%%:]' or wikitext=wikitext2[test]",
    )
    group.add_argument("--eval-seq-len", metavar="N", help="tokens in a window of them, as in compare")
    group.add_argument("--eval-samples", metavar="N[,N…]", help="windows of each, as in compare")
    group.add_argument(
        "--html",
        metavar="FILE",
        help="then write a report of all of it as one HTML page, with the course of the training; of several ratios, "
        "to FILE-keep-0.8.html and so on; needs matplotlib",
    )
    group.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="then send the checkpoint to this repository of the Hub; of several ratios, to REPO-keep-0.8 and so on",
    )
    group.add_argument("--private", action="store_true", default=None, help="make that repository a private one")


def check(args: argparse.Namespace) -> None:
    """Refuse what could not be done after the work: OptionError or GraspruneError."""
    from optimum_grasprune.errors import GraspruneError, OptionError
    from optimum_grasprune.export.hub import check_push

    for name in _OF_MEASURING if not args.evaluate else ():
        if (value := getattr(args, name)) is not None:
            raise OptionError(name, value, "is of use only with --evaluate")
    if args.push_to_hub is not None:
        check_push(args.push_to_hub)
    elif args.private:
        raise GraspruneError("--private: is of use only with --push-to-hub")


def beside_dense(args: argparse.Namespace, config: GRASPConfig, read_as: ReadAs) -> BesideDense | None:
    """What measures, its texts read; None where nothing is to be measured. Raises GraspruneError."""
    if not args.evaluate:
        return None
    from optimum_grasprune.comparison import evaluation_windows, read_corpora
    from optimum_grasprune.comparison.beside import BesideDense

    corpora = read_corpora(args.evaluate, config.text_column)
    window, limits = evaluation_windows(args.eval_seq_len, args.eval_samples, len(corpora))
    return BesideDense(
        args.model,
        corpora,
        window,
        limits,
        bos=config.bos,
        device=config.device,
        dtype=config.dtype,
        read_as=read_as,
    )


def page_of(html: str | None, ratio: float | None) -> str | None:
    """The file of a checkpoint's page. html: as it was given.  ratio: of the checkpoint, where it is one of several."""
    if html is None or ratio is None:
        return html
    file = Path(html)
    return str(file.with_name(f"{file.stem}-keep-{ratio!r}{file.suffix}"))


def finish(
    written: Sequence[Written],
    beside: BesideDense | None,
    *,
    private: bool | None,
    drawing: ModuleType | None = None,
) -> list[tuple[MeasuredText, ...]]:
    """Measure all checkpoints, put it on their cards and pages, then send those that have a repository.

    drawing: the module of ours that does so, where there are pages.  Raises GraspruneError.
    """
    from optimum_grasprune.errors import GraspruneError
    from optimum_grasprune.export.card import write_card
    from optimum_grasprune.export.hub import push

    measured: list[tuple[MeasuredText, ...]] = [()] * len(written)
    if beside is not None:
        try:
            measured = beside.measure([checkpoint.folder for checkpoint in written])
        except GraspruneError as error:
            folders = ", ".join(checkpoint.folder for checkpoint in written)
            raise GraspruneError(f"what was pruned is whole in {folders}, but cannot be measured: {error}") from None
    for checkpoint, texts in zip(written, measured, strict=True):
        if texts or checkpoint.facts.repository is not None:
            write_card(checkpoint.folder, checkpoint.record, checkpoint.facts, texts)
        if texts:
            _show(checkpoint, texts)
        if drawing is not None and checkpoint.page is not None:
            _write_page(checkpoint, checkpoint.page, texts, drawing)
    for checkpoint in written:
        if (repository := checkpoint.facts.repository) is not None:
            print(f"sent to {push(checkpoint.folder, repository, private=private)}")
    return measured


def _write_page(checkpoint: Written, page: str, texts: Sequence[MeasuredText], drawing: ModuleType) -> None:
    """The page that `inspect --html` writes of it, with what was measured."""
    from optimum_grasprune.loading import load_config
    from optimum_grasprune.serving.checkpoint_report import checkpoint_report
    from optimum_grasprune.serving.inspection import inspection, shares_kept
    from optimum_grasprune.writing import write_file

    config, record = load_config(checkpoint.folder), checkpoint.record
    drawn = drawing.Drawn(checkpoint.folder, shares_kept(config, record), checkpoint.numbers)
    report = checkpoint_report(inspection(checkpoint.folder, config), record, None, drawn.pictures(), texts)
    write_file(Path(page), report.html().encode())
    print(f"report: {page}")


def _show(checkpoint: Written, texts: Sequence[MeasuredText]) -> None:
    from optimum_grasprune.report import print_table

    columns = ("perplexity on", "dense", "pruned", "÷ dense", "windows × tokens")
    print_table(
        checkpoint.folder, columns, [text.row() for text in texts], f"{texts[0].precision}; it is on the model card too"
    )
