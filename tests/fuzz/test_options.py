"""Options of all kinds: in files, on the command line, in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from optimum_grasprune import GRASPConfig
from optimum_grasprune.config import (
    BackendOptions,
    DeploymentOptions,
    EvaluationOptions,
    RunnerOptions,
    StateOptions,
    TaskOptions,
)
from optimum_grasprune.serving.asked import Asked
from tests.fuzz.cases import Fuzz, fuzzed
from tests.fuzz.strategies import damaged, values, words

_RECIPE = b"# a recipe\nmethod: magnitude\nkeep_ratio: [0.8, 0.5]\nseed: 3\nnum-samples: 2\nflap_metric: wifv\n"
_OWN = ("model", "output", "recipe", "plan", "nested", "overwrite", "max_shard_size", "json", "evaluate", "revision")
_FIELDS = (*GRASPConfig.model_fields, *EvaluationOptions.model_fields, *DeploymentOptions.model_fields)
_names = st.sampled_from([*_FIELDS, *_OWN, "toy", "trust_remote_code", "--", "config", "help", "no_plot"])
_files = st.one_of(
    st.dictionaries(_names | words, values, max_size=5).map(lambda options: yaml.safe_dump(options).encode()),
    st.dictionaries(_names, values, max_size=5).map(
        lambda options: yaml.safe_dump(options, allow_unicode=True).encode(errors="surrogateescape")
    ),
    damaged(_RECIPE),
    st.binary(max_size=200),
    st.sampled_from(
        [b"- " * 20_000, b"[" * 30_000, b"&a [*a]", b"a: !!python/object:os.system x", b"? [a]\n: b", b"\x00"]
    ),
)
_COMMANDS: dict[str, tuple[str, ...]] = {
    "export": ("-m", "llama", "--method", "magnitude", "--dataset", "corpus.txt"),
    "compare": (
        *("-m", "llama", "--methods", "magnitude", "--keep-ratios", "0.5", "--evaluate", "own=corpus.txt"),
        *("--eval-seq-len", "16", "--dataset", "corpus.txt", "--no-plot"),
    ),
    "evaluate": ("-m", "llama", "--dataset", "corpus.txt", "--num-samples", "1", "--seq-len", "16"),
    "inspect": ("-m", "llama", "--gpu-memory", "1GiB"),
    "benchmark": ("--dense", "llama", "--pruned", "other=llama", "--mode", "generate", "--no-plot"),
}
_FLAGS: dict[str, tuple[str, ...]] = {
    "export": (*GRASPConfig.model_fields, *StateOptions.model_fields, *RunnerOptions.model_fields, *_OWN),
    "compare": (
        *GRASPConfig.model_fields,
        *TaskOptions.model_fields,
        "evaluate",
        "eval_seq_len",
        "eval_samples",
        "json",
    ),
    "evaluate": (
        *EvaluationOptions.model_fields,
        *TaskOptions.model_fields,
        *BackendOptions.model_fields,
        "ppl",
        "dense",
        "json",
    ),
    "inspect": (*DeploymentOptions.model_fields, "dense", "plot", "html", "revision", "json", "model"),
    "benchmark": (*(name for name in vars(Asked)["__dataclass_fields__"] if name != "trust_remote_code"), "json"),
}
pytestmark = pytest.mark.usefixtures("nothing_is_pruned", "own_tasks_alone")


@fuzzed(1000, content=_files, command=st.sampled_from(sorted(_COMMANDS)), bare=st.booleans())
def test_files_of_options(
    fuzz: Fuzz, dense: dict[str, Path], corpus: Path, content: bytes, command: str, bare: bool
) -> None:
    with fuzz.case(dense["llama"], corpus) as work:
        (work / "recipe.yaml").write_bytes(content)
        fuzz.run(command, "-c", "recipe.yaml", *(() if bare else (*_COMMANDS[command], *_output_of(command))))


@fuzzed(1500, data=st.data(), command=st.sampled_from(sorted(_COMMANDS)))
def test_command_lines(fuzz: Fuzz, dense: dict[str, Path], corpus: Path, data: st.DataObject, command: str) -> None:
    arguments = list(_COMMANDS[command])
    for _ in range(data.draw(st.integers(1, 3))):
        flag = f"--{data.draw(st.sampled_from(_FLAGS[command])).replace('_', '-')}"
        how = data.draw(st.sampled_from(["joined", "joined", "apart", "alone", "word", "taken out"]))
        if how == "taken out" and arguments:
            del arguments[data.draw(st.integers(0, len(arguments) - 1))]
        else:
            text = data.draw(words)
            arguments += {"joined": [f"{flag}={text}"], "apart": [flag, text], "alone": [flag]}.get(how, [text])
    with fuzz.case(dense["llama"], corpus):
        fuzz.run(command, *arguments, *_output_of(command))


@fuzzed(700, options=st.dictionaries(st.sampled_from([*GRASPConfig.model_fields]) | words, values, max_size=5))
def test_options_in_python(fuzz: Fuzz, options: dict[str, Any]) -> None:
    with fuzz.case():
        fuzz.refused(lambda: GRASPConfig.from_dict(GRASPConfig(**options).to_dict()))


def _output_of(command: str) -> tuple[str, ...]:
    return ("out",) if command in ("export", "compare", "benchmark") else ()
