"""Damaged model folders: dense and pruned, every file of theirs."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from optimum_grasprune import load_pruned_model
from tests.fuzz.cases import Fuzz, fuzzed
from tests.fuzz.conftest import FAMILIES
from tests.fuzz.strategies import damaged, json_files, safetensors_files, values

_families = st.sampled_from(sorted(FAMILIES))
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_MAGNITUDE = ("--method", "magnitude", "--keep-ratio", 0.9, "--dtype", "auto", "out")


def _draw_into(data: st.DataObject, file: Path) -> None:
    file.write_bytes(data.draw(json_files(file.read_bytes())))


@fuzzed(1000, data=st.data(), family=_families, of_pruned=st.booleans())
def test_configurations_that_are_inspected(
    fuzz: Fuzz, dense: dict[str, Path], pruned: dict[str, Path], data: st.DataObject, family: str, of_pruned: bool
) -> None:
    with fuzz.case((pruned if of_pruned else dense)[family]) as work:
        _draw_into(data, work / family / "config.json")
        fuzz.run("inspect", "-m", family, "--gpu-memory", "1GiB", "--json", "result.json")


@fuzzed(500, data=st.data(), family=_families)
def test_configurations_that_are_exported(fuzz: Fuzz, dense: dict[str, Path], data: st.DataObject, family: str) -> None:
    with fuzz.case(dense[family]) as work:
        _draw_into(data, work / family / "config.json")
        fuzz.run("export", "-m", family, *_MAGNITUDE)


@fuzzed(500, data=st.data(), family=_families)
def test_configurations_that_are_loaded(fuzz: Fuzz, pruned: dict[str, Path], data: st.DataObject, family: str) -> None:
    with fuzz.case(pruned[family]) as work:
        _draw_into(data, work / family / "config.json")
        fuzz.refused(lambda: load_pruned_model(work / family))


@fuzzed(400, data=st.data(), name=st.sampled_from(["dense", "pruned"]))
def test_configurations_that_are_evaluated(
    fuzz: Fuzz, dense: dict[str, Path], pruned: dict[str, Path], corpus: Path, data: st.DataObject, name: str
) -> None:
    folder = {"dense": dense, "pruned": pruned}[name]["llama"]
    with fuzz.case(folder, corpus) as work:
        _draw_into(data, work / "llama" / data.draw(st.sampled_from(["config.json", "generation_config.json"])))
        fuzz.run("evaluate", "-m", "llama", "--dataset", "corpus.txt", "--num-samples", 1, "--seq-len", 16)


@fuzzed(500, data=st.data(), family=_families, of_pruned=st.booleans())
def test_weights(
    fuzz: Fuzz, dense: dict[str, Path], pruned: dict[str, Path], data: st.DataObject, family: str, of_pruned: bool
) -> None:
    with fuzz.case((pruned if of_pruned else dense)[family]) as work:
        file = work / family / "model.safetensors"
        file.write_bytes(data.draw(safetensors_files(file.read_bytes())))
        if of_pruned:
            fuzz.refused(lambda: load_pruned_model(work / family))
        else:
            fuzz.run("export", "-m", family, *_MAGNITUDE)


@fuzzed(300, data=st.data())
def test_indices_of_shards(fuzz: Fuzz, dense: dict[str, Path], data: st.DataObject) -> None:
    with fuzz.case(dense["llama"]) as work:
        _in_shards(work / "llama")
        _draw_into(data, work / "llama" / "model.safetensors.index.json")
        fuzz.run("export", "-m", "llama", *_MAGNITUDE)


@fuzzed(400, data=st.data(), name=st.sampled_from(_TOKENIZER))
def test_tokenizers(fuzz: Fuzz, dense: dict[str, Path], corpus: Path, data: st.DataObject, name: str) -> None:
    with fuzz.case(dense["llama"], corpus) as work:
        _draw_into(data, work / "llama" / name)
        fuzz.run("evaluate", "-m", "llama", "--dataset", "corpus.txt", "--num-samples", 1, "--seq-len", 16)


@fuzzed(200, data=st.data(), name=st.sampled_from(["adapter_config.json", "README.md", "special_tokens_map.json"]))
def test_files_beside(fuzz: Fuzz, dense: dict[str, Path], data: st.DataObject, name: str) -> None:
    content = data.draw(values.map(json.dumps).map(str.encode) | st.binary(max_size=50) | damaged(b"---\na: 1\n---\n"))
    with fuzz.case(dense["llama"]) as work:
        (work / "llama" / name).write_bytes(content)
        fuzz.run("export", "-m", "llama", *_MAGNITUDE)


def _in_shards(folder: Path) -> None:
    """Give a model an index, whose one shard is its file."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        names = list(tensors.keys())
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
