"""A checkpoint as one HTML page: its shape, its budget, how it was made and trained, and what it was chosen by."""

from __future__ import annotations

from collections.abc import Sequence

from ..export.command import SOURCE_OPTIONS, command_of, public_corpora
from ..export.results import MeasuredText
from ..export.staging import RECORD_NAME
from ..record import Record
from ..record.describe import public_name, public_sources
from ..report import budget_rows
from ..report.html import Pictures, Report, Section, SortableTable
from .inspection import COLUMNS, Deployment, Inspection


def checkpoint_report(
    found: Inspection,
    record: Record | None,
    deployment: Deployment | None,
    pictures: Pictures,
    measured: Sequence[MeasuredText] = (),
) -> Report:
    """The page of a checkpoint. record: None for one that was not pruned here.  measured: perplexities, if any."""
    name = public_name(found.model)
    sections = [Section("Shape", pictures=pictures.shape)] if pictures.shape else []
    if record is not None:
        sections += [_kept(record), *_results(measured), *_command(record), _course(pictures), _scores(pictures)]
        sections += _choice(record)
    layers = SortableTable.of_text(COLUMNS, found.rows(), left={"layer"}, note=found.footer().replace("\n", ". ") + ".")
    sections.append(Section("Layers", table=layers))
    if deployment is not None:
        fits = SortableTable.of_text(deployment.columns(), deployment.rows(), left=deployment.columns()[:1])
        sections.append(Section("What fits", text=[deployment.title(), deployment.footer()], table=fits))
    if record is not None:
        sections.append(_recipe(record))
    return Report(
        title=name,
        lead=_lead(found, record),
        facts=[("family", found.family), ("parameters", f"{found.parameters:,}"), *_facts(record)],
        sections=sections,
    )


def _lead(found: Inspection, record: Record | None) -> str:
    cache = f"{found.kv_bytes_per_token:,} bytes of KV cache per token."
    if record is None:
        return f"A checkpoint that was not pruned here. {cache}"
    return f"Pruned from {record.base_model.name or 'a model in memory'} by {record.option('method')}. {cache}"


def _facts(record: Record | None) -> list[tuple[str, str]]:
    if record is None:
        return []
    facts = [
        ("keep ratio", str(record.option("keep_ratio"))),
        ("makes up for the cut", ", ".join(record.compensation).replace("_", " ") or "nothing"),
        ("seed", str(record.option("seed"))),
    ]
    if record.calibration is not None:
        count, length = record.calibration.sequences
        text = ", ".join(public_sources(record.calibration.source))
        facts.append(("calibrated on", f"{text}: {count} sequences of {length} tokens"))
    versions = ", ".join(f"{package} {version}" for package, version in record.versions.items())
    return [*facts, ("versions", versions)]


def _kept(record: Record) -> Section:
    table = SortableTable.of_text(("quantity", "dense", "pruned", "kept"), budget_rows(record), left={"quantity"})
    return Section("What is kept", table=table)


def _results(measured: Sequence[MeasuredText]) -> list[Section]:
    if not measured:
        return []
    columns = ("perplexity on", "dense", "pruned", "pruned ÷ dense", "windows × tokens")
    note = f"Measured in {measured[0].precision} on windows that do not overlap."
    rows = [text.row() for text in measured]
    return [Section("Results", table=SortableTable.of_text(columns, rows, left=columns[:1], note=note))]


def _command(record: Record) -> list[Section]:
    command = command_of(record, record.base_model.name or "MODEL")
    return [] if command is None else [Section("How it was made", code=command)]


def _course(pictures: Pictures) -> Section:
    """Loss by step of everything that was trained; of gates also what the masks kept, and how they changed."""
    if not pictures.training:
        return Section("Training", text=["Nothing was trained, or nothing was kept of how it went."])
    text = (
        "Loss is that of the sequences of a step. Kept: the share of FFN channels and of KV heads in the mask of the "
        "step. Changed: the share of them that was in at the step before and is out now, or the other way round."
    )
    return Section("Training", text=[text], pictures=pictures.training)


def _scores(pictures: Pictures) -> Section:
    if not pictures.scores:
        return Section("Scores", text=["Nothing was kept of the scores that units were chosen by."])
    text = (
        "What units were chosen by, kind by kind; the highest stay. The cut is where it would be if the scores of the "
        "kind alone decided: smallest widths, alignment and a search of widths keep some units below it."
    )
    return Section("Scores", text=[text], pictures=pictures.scores)


def _choice(record: Record) -> list[Section]:
    """What was measured to choose: the loss of every candidate, and of what makes up for its cut."""
    if not record.choice:
        return []
    rows = [
        [
            judgement.candidate,
            judgement.compensation.replace("_", " "),
            ", ".join(f"{name} {value:g}" for name, value in judgement.settings.items()),
            f"{judgement.loss:.4f}",
        ]
        for judgement in record.choice
    ]
    columns = ("candidate", "with", "settings", "held-out loss")
    note = "Mean next-token loss in nats on calibration text that nothing was trained on."
    table = SortableTable.of_text(columns, rows, left=columns[:3], note=note)
    return [Section("What the choice was made by", table=table)]


def _recipe(record: Record) -> Section:
    """All options, those of texts by names that say nothing of a machine."""
    rows = []
    for name, value in record.recipe.items():
        shown = public_corpora(value) if name in SOURCE_OPTIONS and isinstance(value, str) else value
        rows.append([name, "" if shown is None else str(shown).lower() if isinstance(shown, bool) else str(shown)])
    note = f"As in {RECORD_NAME}, which export takes by -c."
    return Section(
        "Recipe", table=SortableTable.of_text(("option", "value"), rows, left=("option", "value"), note=note)
    )
