"""Which text to calibrate on: one recipe on each of several corpora and on mixtures of them, measured on all of them.

    python benchmarks/corpora.py MODEL --output FOLDER --corpora builtin=builtin sampled=sampled wiki=wikitext2

Of each corpus, given as NAME=SOURCE, the first nine tenths are calibrated on and the rest is measured on, whatever was
calibrated on; --evaluate adds texts that nobody calibrates on, and --tasks asks tasks, as in `compare`. Mixtures are
named NAME+NAME; by default there is one, of all. Each text and seed is a comparison in a folder of its own, so that a
run that was stopped is taken up where it was. FOLDER/corpora.md and FOLDER/corpora.json hold the rise of the loss over
the dense model by calibration text and measured text, its mean, the mean rank, and the accuracy in the tasks. A folder
is for one model and one method. Processes side by side each do some of the texts with --only; the same command without
it then writes the tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from optimum_grasprune.comparison import (
    Comparison,
    ComparisonResult,
    cells_of,
    evaluation_windows,
    read_corpora,
    write_tables,
)
from optimum_grasprune.comparison.accuracy import headline, questions_note
from optimum_grasprune.config import RunOptions, TaskOptions
from optimum_grasprune.config.flags import add_options, given
from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.evaluation.scores import TaskScore, against_dense
from optimum_grasprune.evaluation.tables import scaled, share
from optimum_grasprune.evaluation.tasks import TaskSuite, read_tasks
from optimum_grasprune.evaluation.texts import public_entry
from optimum_grasprune.writing import slug, write_file, write_json

CALIBRATED, MEASURED = "[:90%]", "[90%:]"
"""What of each corpus is calibrated on, and what is measured on."""

Row = dict[str, list[float]]
"""Rises of the loss over the dense model, in nats, by measured text: a value for each seed."""

Scores = dict[str, list[TaskScore]]
"""The figure that sums up the tasks, by what was calibrated on: one for each seed."""


def texts_of(corpora: Sequence[str], mixtures: Sequence[str] | None) -> dict[str, str]:
    """What is calibrated on, by name. corpora: each as NAME=SOURCE.  mixtures: each as NAME+NAME; None for one of all.

    Raises ValueError, with one line, where an entry looks otherwise or names no corpus.
    """
    sources = {}
    for entry in corpora:
        name, _, source = entry.partition("=")
        if not name or not source or "+" in name or name in sources:
            raise ValueError(f"--corpora {entry}: should look like NAME=SOURCE, each name once and without a +")
        sources[name] = source
    if mixtures is None:
        mixtures = ["+".join(sources)] if len(sources) > 1 else []
    texts = dict(sources)
    for mixture in mixtures:
        names = mixture.split("+")
        if len(set(names)) < 2 or not set(names) <= set(sources):
            raise ValueError(f"--mixtures {mixture}: should be NAME+NAME, of {', '.join(sources)}")
        texts[mixture] = ",".join(sources[name] for name in names)
    return texts


def chosen(texts: dict[str, str], only: Sequence[str] | None) -> dict[str, str]:
    """Those of the texts that are named; all for None. Raises ValueError, with one line, for a name of none."""
    for name in only or ():
        if name not in texts:
            raise ValueError(f"--only {name}: should be of {', '.join(texts)}")
    return texts if only is None else {name: texts[name] for name in only}


def compared(args: argparse.Namespace, tasks: TaskSuite | None, name: str, source: str, seed: int) -> ComparisonResult:
    """The method, calibrated on one text with one seed, at all ratios. Raises GraspruneError, also where one failed."""
    options = {"dataset": source, "dataset_split": CALIBRATED, "seed": seed, **given(args, ["dtype"])}
    cells = cells_of([args.method], args.keep_ratios, options)
    measured = read_corpora([*(f"{entry}{MEASURED}" for entry in args.corpora), *args.evaluate], "text")
    window, limits = evaluation_windows(args.eval_seq_len, args.eval_samples, len(measured))
    folder = args.output / f"{slug(name)}-{seed}"
    # The dense model is the same in all of them, and `Comparison` sees to it that what it finds fits.
    dense = next(iter(sorted(args.output.glob("*/dense.json"))), None)
    if dense is not None and not folder.exists():
        (folder / "cells").mkdir(parents=True)
        shutil.copy(dense, folder)
    comparison = Comparison(
        args.model, cells, measured, folder, window=window, limits=limits, dtype=args.dtype or "auto", tasks=tasks
    )
    result = comparison.run(announce=lambda line: print(f"{name}, seed {seed}: {line}", flush=True))
    write_tables(result, folder)
    if failed := result.failed():
        raise GraspruneError(f"calibrated on {name} with seed {seed}, {failed[0].name} failed: {failed[0].error}")
    return result


def means_of(rows: Mapping[str, Row]) -> dict[str, dict[str, float]]:
    """The same with means over the seeds."""
    return {name: {text: statistics.mean(values) for text, values in row.items()} for name, row in rows.items()}


def mean_ranks(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The rank of each row among all, 1 for the least value, averaged over the columns; equal values share theirs."""

    def rank(row: str, column: str) -> float:
        values = [rows[other][column] for other in rows]
        less = sum(value < rows[row][column] for value in values)
        return less + (values.count(rows[row][column]) + 1) / 2

    return {row: statistics.mean(rank(row, column) for column in columns) for row, columns in rows.items()}


def above_chance(score: TaskScore, dense: TaskScore) -> float | None:
    """The share of the dense model's points above chance that is kept."""
    return against_dense(score, dense, None).above_chance_kept


def scores_of(of_seeds: Sequence[TaskScore], dense: TaskScore) -> dict[str, list[float | None]]:
    """What corpora.json holds of a row in tasks: a value for each seed."""
    kept = [above_chance(score, dense) for score in of_seeds]
    return {"score": [score.value for score in of_seeds], "above_chance_kept": kept}


def add_tasks(lines: list[list[str]], dense: tuple[str, TaskScore], scores: Scores) -> None:
    """Add the columns of the tasks to a table, and a line of the dense model. dense: as `headline` has it."""
    title, of_dense = dense
    means = [replace(of_dense, value=statistics.mean(s.value for s in of_seeds)) for of_seeds in scores.values()]
    best = (min if of_dense.higher_is_better is False else max)(score.value for score in means)
    marks = ["**" if score.value == best else "" for score in means]
    values = [[f"{m}{scaled(s)}{m}", share(above_chance(s, of_dense))] for m, s in zip(marks, means, strict=True)]
    lines.insert(2, ["dense", *["0"] * (len(lines[0]) - 2), ""])
    columns = [[title, "above chance kept"], ["---:"] * 2, [scaled(of_dense), "100.0%"], *values]
    for line, more in zip(lines, columns, strict=True):
        line += more


def markdown(rows: Mapping[str, Row], dense: tuple[str, TaskScore] | None = None, scores: Scores | None = None) -> str:
    """The table of one ratio, means over the seeds, the best of each column in bold. dense, scores: in tasks."""
    means = means_of(rows)
    ranks = mean_ranks(means)
    texts = list(next(iter(means.values())))
    lines = [["calibrated on", *texts, "mean", "mean rank"], ["---", *["---:"] * (len(texts) + 2)]]
    columns = {name: [*row.values(), statistics.mean(row.values()), ranks[name]] for name, row in means.items()}
    best = [min(column) for column in zip(*columns.values(), strict=True)]
    for name, values in columns.items():
        forms = [f"{value:+.3f}" for value in values[:-1]] + [f"{values[-1]:.2f}"]
        marked = [f"**{f}**" if value == least else f for f, value, least in zip(forms, values, best, strict=True)]
        lines.append([name, *marked])
    if dense is not None and scores is not None:
        add_tasks(lines, dense, scores)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write(
    args: argparse.Namespace,
    tables: Mapping[str, Mapping[str, Row]],
    accuracy: Mapping[str, Scores],
    result: ComparisonResult,
) -> str:
    """Write both files; returns the page. tables, accuracy: rows by ratio.  result: any, for what all share."""
    ranks = {ratio: mean_ranks(means_of(rows)) for ratio, rows in tables.items()}
    run = {name: getattr(args, name) for name in ("model", "method", "corpora", "evaluate", "seeds")}
    run |= given(args, ["dtype"])
    dense = None if result.dense.tasks is None else headline(result.dense.tasks.scores)
    tasks, note = {}, ""
    if dense is not None and result.tasks is not None:
        rows = {
            ratio: {name: scores_of(of_seeds, dense[1]) for name, of_seeds in scores.items()}
            for ratio, scores in accuracy.items()
        }
        tasks = {"tasks": {**result.tasks.to_dict(), "figure": dense[0], "dense": dense[1].value, "pruned": rows}}
        note = f"{questions_note(result.tasks, result.precision)}\n\n"
    write_json(args.output / "corpora.json", {**run, "excess_loss": tables, "mean_rank": ranks, **tasks})
    seeds = f"{'Seed' if len(args.seeds) == 1 else 'Mean over the seeds'} {', '.join(map(str, args.seeds))}"
    page = (
        f"# Calibration texts for `{args.method}` on {Path(args.model).name}\n\n"
        "Rise of the loss over the dense model, ln(perplexity ÷ dense), in nats, by what was calibrated on and what\n"
        f"was measured on. {seeds}.\n\n{note}"
    )
    listed = "".join(
        f"- {public_entry(e)}: `{CALIBRATED}` calibrated on, `{MEASURED}` measured on\n" for e in args.corpora
    )
    listed += "".join(f"- {public_entry(entry)}: measured on\n" for entry in args.evaluate)
    parts = (f"## ρ = {ratio}\n\n{markdown(rows, dense, accuracy.get(ratio))}" for ratio, rows in tables.items())
    page += listed + "\n" + "\n".join(parts)
    write_file(args.output / "corpora.md", page.encode())
    return page


def refuse_foreign(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line when the folder holds the table of something else, which this one would overwrite."""
    earlier = args.output / "corpora.json"
    if not earlier.exists():
        return
    found = json.loads(earlier.read_text(encoding="utf-8"))
    for name in ("model", "method"):
        if found[name] != getattr(args, name):
            parser.error(f"--output {args.output} holds the table of {name} {found[name]}, not {getattr(args, name)}")


def parsed() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser, and what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--corpora", nargs="+", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--mixtures", nargs="*", metavar="NAME+NAME", help="one of all corpora by default")
    parser.add_argument("--evaluate", nargs="*", default=[], metavar="NAME=SOURCE[PART]", help="further texts")
    parser.add_argument("--method", default="quick", help="an entry of compare's --methods, as in quick@seq_len=128")
    parser.add_argument("--keep-ratios", nargs="+", default=["0.8", "0.5"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--eval-seq-len", metavar="N")
    parser.add_argument("--eval-samples", metavar="N[,N…]")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="calibrate on these, and write no tables of all")
    add_options(parser.add_argument_group("Precision, the dense model's too"), RunOptions, ["dtype"])
    add_options(parser.add_argument_group("Accuracy in tasks of lm-evaluation-harness"), TaskOptions)
    return parser, parser.parse_args()


def main() -> None:
    """Run what is not finished, write the table anew after each text, and print it."""
    parser, args = parsed()
    refuse_foreign(parser, args)
    tables: dict[str, dict[str, Row]] = {}
    accuracy: dict[str, Scores] = {}
    page = ""
    try:
        tasks = read_tasks(TaskOptions(**given(args, TaskOptions.model_fields)), args.model)
        for name, source in chosen(texts_of(args.corpora, args.mixtures), args.only).items():
            for seed in args.seeds:
                result = compared(args, tasks, name, source, seed)
                for cell in result.cells:
                    ratio = f"{cell.keep_ratio:g}"
                    row = tables.setdefault(ratio, {}).setdefault(name, {})
                    for text in result.corpora:
                        if cell.pruned is not None:
                            row.setdefault(text, []).append(result.excess_loss(cell.pruned, text))
                    if cell.pruned is not None and cell.pruned.tasks is not None:
                        score = headline(cell.pruned.tasks.scores)[1]
                        accuracy.setdefault(ratio, {}).setdefault(name, []).append(score)
            if args.only is None:  # other processes would write theirs over it
                page = write(args, tables, accuracy, result)
    except (GraspruneError, ValueError) as error:
        parser.error(str(error))
    if page:
        print(page)


if __name__ == "__main__":
    main()
