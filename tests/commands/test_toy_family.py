"""A family of one's own: the folder of docs/adding-a-family.md, as it stands there, and its line in the registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.errors import UnsupportedFamilyError
from optimum_grasprune.families import FAMILIES, Family, family_of, register
from tests.commands.conftest import Outcome
from tests.conftest import logits_of, make_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-family.md"
TOKENS = torch.arange(2, 62).view(2, 30)


def files_of_the_page() -> dict[str, str]:
    """The code of the page by file name, as its headings give it."""
    blocks = re.findall(r"^## \d\. `families/granite/(\w+\.py)`.*?```python\n(.*?)```", PAGE.read_text(), re.M | re.S)
    return dict(blocks)


@pytest.fixture
def granite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    folder = tmp_path / "modules" / "granite"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name, code in files_of_the_page().items():
        (folder / name).write_text(code)
    monkeypatch.syspath_prepend(folder.parent)
    from granite.family import GRANITE

    register(GRANITE)
    yield GRANITE
    del FAMILIES[GRANITE.name]
    CONFIG_MAPPING._extra_content.pop(GRANITE.pruned_type)
    for auto in (AutoModel, AutoModelForCausalLM):
        auto._model_mapping._extra_content.pop(GRANITE.pruned.config)
    for name in [name for name in sys.modules if name.partition(".")[0] == "granite"]:
        del sys.modules[name]


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
    )
    GraniteForCausalLM(config).save_pretrained(tmp_path / "dense")
    make_tokenizer().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def test_without_its_line_it_is_refused(dense: Path) -> None:
    with pytest.raises(UnsupportedFamilyError, match="model type 'granite' is not supported"):
        family_of(AutoConfig.from_pretrained(dense))


@pytest.mark.parametrize("method", ["fisher", "flap", "fasp", "grasprune"])
def test_the_command_line_prunes_and_everyone_loads(
    granite: Family, method: str, dense: Path, cli: Callable[..., Outcome], corpus_file: Path, tmp_path: Path
) -> None:
    data = ("--dataset", corpus_file, "--num-samples", 4, "--seq-len", 24, "--epochs", 1)
    outcome = cli("export", "-m", dense, *data, "--method", method, "--keep-ratio", 0.6, tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["model_type"] == "grasp_granite" and values["architectures"] == ["GRASPGraniteForCausalLM"]
    ours = load_pruned_model(tmp_path / "out")
    assert granite.inventory(ours).total_cost <= 0.6 * granite.inventory(load_dense(dense)).total_cost
    assert torch.equal(logits_of(ours, TOKENS), logits_of(load_dense(tmp_path / "out"), TOKENS))
    # Its own two files and no other family's.
    assert sorted(file.name for file in (tmp_path / "out").glob("*.py")) == [
        "configuration_grasp.py",
        "modeling_grasp.py",
    ]
    assert "Llama" not in (tmp_path / "out" / "modeling_grasp.py").read_text()


def load_dense(folder: Path) -> GraniteForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder)


def test_it_loads_where_neither_it_nor_this_package_is_installed(
    granite: Family, dense: Path, corpus_file: Path, tmp_path: Path
) -> None:
    model = load_dense(dense)
    config = GRASPConfig(method="magnitude", keep_ratio=0.5)
    pruner = GRASPPruner(config)
    expected = logits_of(pruner.prune_model(model, make_tokenizer()), TOKENS)
    pruner.save(tmp_path / "out")
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert not any(name.partition('.')[0] in ('optimum_grasprune', 'granite') for name in sys.modules)\n"
        "torch.save(model(torch.arange(2, 62).view(2, 30)).logits, sys.argv[2])\n"
    )
    logits = tmp_path / "logits.pt"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), str(logits)],
        cwd=tmp_path,
        env={"PATH": "", "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    torch.testing.assert_close(torch.load(logits, weights_only=True), expected)


def test_a_name_or_a_type_is_taken_once(granite: Family) -> None:
    with pytest.raises(ValueError, match="Granite, granite, grasp_granite is of the family Granite already"):
        register(granite)


@pytest.mark.parametrize(
    ("option", "unit"), [("--min-kv-groups", "KV head group"), ("--min-ffn-channels", "FFN channel")]
)
def test_a_family_whose_classes_keep_every_block_says_so(
    granite: Family, dense: Path, option: str, unit: str, cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = cli("export", "-m", dense, "--method", "magnitude", option, 0, tmp_path / "out")
    assert outcome.code == 2 and not (tmp_path / "out").exists()
    assert outcome.error_lines == [
        f"optimum-cli grasprune export: error: {option} 0: every layer of a Granite keeps at least one {unit}"
    ]
