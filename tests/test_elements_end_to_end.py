"""Single weights cut: from the pruner to a folder that plain transformers loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.errors import OptionError, PlanError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.export.checkpoint import read_plan, read_record
from optimum_grasprune.families import linears
from optimum_grasprune.loading import count_parameters
from optimum_grasprune.report import budget_rows, print_summary
from tests.conftest import logits_of, make_model, make_tokenizer

TOKENS = torch.arange(20)[None]


def sparse_pruner(corpus_file: Path, **options: object) -> GRASPPruner:
    values = {"pattern": "2:4", "num_samples": 2, "seq_len": 24, **options}
    return GRASPPruner(GRASPConfig(method="statistical", dataset=str(corpus_file), **values))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("sparse") / "out"
    pruner = sparse_pruner(corpus_file)
    pruner.prune_model(make_model(), make_tokenizer())
    pruner.save(folder)
    return folder


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
@pytest.mark.parametrize("tied", [False, True])
def test_loads_as_a_stock_model_bit_by_bit(
    pattern: str, tied: bool, corpus_file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = make_model(tie_word_embeddings=tied, attention_bias=True)
    for parameter in model.parameters():  # and not the rotary frequencies, which loading leaves in fp32
        parameter.data = parameter.data.bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruner = sparse_pruner(corpus_file, pattern=pattern)
    sparse = pruner.prune_model(model, tokenizer)
    assert type(sparse) is type(model) and pruner.plan is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    pruner.save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert type(loaded) is type(model)
    state = sparse.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor.view(torch.int16), state[name].view(torch.int16)), name
    zeros = sum(int((linear.weight == 0).sum()) for linear in linears(loaded, WholeModel(loaded).blocks).values())
    assert zeros == pruner.record.budget.dense.prunable // 2
    assert torch.equal(logits_of(loaded, TOKENS), logits_of(sparse, TOKENS))


def test_record(corpus_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model(attention_bias=True)
    weights = sum(linear.weight.numel() for linear in linears(model, WholeModel(model).blocks).values())
    pruner = sparse_pruner(corpus_file, pattern="unstructured", keep_ratio=0.3)
    sparse = pruner.prune_model(model, tokenizer)
    record = pruner.record.to_dict()
    assert json.loads(json.dumps(record)) == record
    assert set(record) == {
        *(
            "format",
            "recipe",
            "base_model",
            "calibration",
            "budget",
            "compensation",
            "damping",
            "choice",
            "versions",
            "plan",
        )
    }
    assert record["plan"] is None and record["choice"] == [] and record["compensation"] == ["energy"]
    kept = sum(int((linear.weight != 0).sum()) for linear in linears(sparse, WholeModel(sparse).blocks).values())
    budget = record["budget"]
    assert budget["asked"] == {"cost": weights * 3 // 10, "kv_width": None}
    assert budget["dense"] == {
        "parameters": count_parameters(model), "prunable": weights, "kv_elements_per_token": 3 * 2 * 2 * 8,
    }  # fmt: skip
    assert budget["pruned"]["prunable"] == kept <= budget["asked"]["cost"]
    assert budget["pruned"]["parameters"] == sum(int((part != 0).sum()) for part in sparse.parameters())
    assert budget["kept"] == {
        "prunable": kept / weights,
        "parameters": budget["pruned"]["parameters"] / count_parameters(model),
        "kv_cache": 1.0,
    }
    assert budget_rows(pruner.record)[2][3] == "100.00%"


def test_energy_and_none_cut_the_same_weights(corpus_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model()
    scaled, plain = (
        sparse_pruner(corpus_file, compensation=compensation).prune_model(model, tokenizer)
        for compensation in ("energy", "none")
    )
    for path in linears(model, WholeModel(model).blocks):
        one, other = scaled.get_submodule(path).weight, plain.get_submodule(path).weight
        assert torch.equal(one != 0, other != 0) and not torch.equal(one, other)
        factor = (one / other).nan_to_num(0.0)
        row = factor.amax(1, keepdim=True)
        torch.testing.assert_close(factor, row * (one != 0))
        assert row.min() >= 0.499 and row.max() <= 2.001


def test_same_recipe_same_bytes(corpus_file: Path, tokenizer: PreTrainedTokenizerFast, saved: Path) -> None:
    again = sparse_pruner(corpus_file).prune_model(make_model(), tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(saved)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_folder_is_a_stock_checkpoint(saved: Path) -> None:
    assert {file.name for file in saved.iterdir()} == {
        *("README.md", "config.json", "generation_config.json", "grasp_config.json", "grasp_report.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    assert not {"auto_map", "per_layer_config"} & set(config)
    assert type(load_pruned_model(saved)).__name__ == "LlamaForCausalLM"


def test_loads_where_this_package_is_not_imported(saved: Path) -> None:
    code = (
        "import sys; from transformers import AutoModelForCausalLM; "
        f"model = AutoModelForCausalLM.from_pretrained({str(saved)!r}); "
        "print(int((model.model.layers[0].mlp.up_proj.weight == 0).sum())); "
        "assert 'optimum_grasprune' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) == 48 * 32 // 2


def test_card_says_what_it_is(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = (saved / "README.md").read_text()
    assert "of the dense model's size with zeros in it" in card
    assert "method `statistical`, pattern `2:4`" in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "import optimum_grasprune" not in card and "## Widths" not in card and "plan" not in card
    record = read_record(saved)
    assert record is not None
    print_summary(record, "title")
    assert "the model has its dense size" in " ".join(capsys.readouterr().out.split())


def test_there_is_no_plan_to_replay(saved: Path) -> None:
    with pytest.raises(PlanError, match="holds no pruning plan: single weights were set to zero, no units were cut"):
        read_plan(saved)


def test_single_heads_do_not_stand_in_the_way(corpus_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Half of the units could not be cut here: one KV group is more than half of the whole."""
    model = make_model(num_key_value_heads=1, intermediate_size=8)
    assert sparse_pruner(corpus_file).prune_model(model, tokenizer) is not model


def test_pruned_model_can_lose_single_weights_too(
    corpus_file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    units = GRASPPruner(GRASPConfig(method="random", ffn_multiple_of=4, keep_ratio=0.6))
    smaller = units.prune_model(make_model(), tokenizer)
    pruner = sparse_pruner(corpus_file)
    sparse = pruner.prune_model(smaller, tokenizer)
    pruner.save(tmp_path / "out")
    assert (tmp_path / "out" / "modeling_grasp.py").is_file()
    assert "import optimum_grasprune" in (tmp_path / "out" / "README.md").read_text()
    loaded = load_pruned_model(tmp_path / "out")
    assert torch.equal(logits_of(loaded, TOKENS), logits_of(sparse, TOKENS))


def test_bad_options_are_found_before_any_work() -> None:
    with pytest.raises(OptionError, match="pattern='2:4': magnitude supports only units"):
        GRASPPruner(GRASPConfig(method="magnitude", pattern="2:4"))
    with pytest.raises(OptionError, match="keep_ratio=0.6: pattern 2:4 keeps exactly half"):
        GRASPPruner(GRASPConfig(method="statistical", pattern="2:4", keep_ratio=0.6))
