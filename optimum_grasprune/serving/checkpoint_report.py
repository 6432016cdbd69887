"""A checkpoint as one HTML page: its shape, its budget, how it was made and what it was chosen by."""

from __future__ import annotations

from collections.abc import Sequence

from ..export.command import command_of
from ..record import Record
from ..record.describe import public_name, public_sources
from ..report import budget_rows
from ..report.html import Picture, Report, Section, SortableTable
from .inspection import COLUMNS, Deployment, Inspection


def checkpoint_report(
    found: Inspection, record: Record | None, deployment: Deployment | None, pictures: Sequence[Picture] = ()
) -> Report:
    """The page of a checkpoint. record: None for one that was not pruned here.  pictures: of its widths."""
    name = public_name(found.model)
    sections = [Section("Shape", pictures=pictures)] if pictures else []
    if record is not None:
        sections += [_kept(record), *_made(record)]
    layers = SortableTable.of_text(COLUMNS, found.rows(), left={"layer"}, note=found.footer().replace("\n", ". ") + ".")
    sections.append(Section("Layers", table=layers))
    if deployment is not None:
        fits = SortableTable.of_text(deployment.columns(), deployment.rows(), left=deployment.columns()[:1])
        sections.append(Section("What fits", text=[deployment.title(), deployment.footer()], table=fits))
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


def _made(record: Record) -> list[Section]:
    """The command, and what was measured to choose: the loss of every candidate, and of what makes up for its cut."""
    sections = []
    if (command := command_of(record, record.base_model.name or "MODEL")) is not None:
        sections.append(Section("How it was made", code=command))
    if record.choice:
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
        sections.append(Section("What the choice was made by", table=table))
    return sections
