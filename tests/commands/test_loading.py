from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

import optimum_grasprune.loading
from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.comparison.models import identity
from optimum_grasprune.errors import CheckpointError, ModelError, OptionError
from optimum_grasprune.loading import calibration_length, common_window, load_config, load_model, load_tokenizer
from optimum_grasprune.model_files import check_revision
from optimum_grasprune.serving.checkpoints import read_checkpoints
from optimum_grasprune.serving.engines.vllm.client import tokenizer_flags
from optimum_grasprune.serving.engines.vllm.launch import launch_with
from tests.commands.test_refusals import UP, Cli, described, one_line, with_tensor
from tests.conftest import make_model, make_tokenizer

HUB_NAME = "tiny/llama"


@pytest.fixture(scope="module")
def pruned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading") / "pruned"
    pruner = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.8))
    pruner.prune_model(make_model(), make_tokenizer())
    pruner.save(folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pruned_folder: Path) -> str:
    """A repository in the cache of the Hub, without network: `main` is a dense model, `pruned` a pruned one."""
    repository = tmp_path / "hub" / "models--tiny--llama"
    for revision, commit in (("main", "1" * 40), ("pruned", "2" * 40)):
        snapshot = repository / "snapshots" / commit
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        if revision == "main":
            make_model(num_hidden_layers=2).save_pretrained(snapshot)
            make_tokenizer().save_pretrained(snapshot)
        else:
            shutil.copytree(pruned_folder, snapshot)
            tokenizer = make_tokenizer()
            tokenizer.model_max_length = 77
            tokenizer.save_pretrained(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return HUB_NAME


def test_revision_reaches_configuration_weights_and_tokenizer(hub: str) -> None:
    assert load_config(hub).num_hidden_layers == 2 and load_config(hub).model_type == "llama"
    assert load_config(hub, revision="pruned").model_type == "grasp_llama"
    assert len(load_model(hub).model.layers) == 2
    assert len(load_model(hub, revision="2" * 40).model.layers) == 3
    assert load_tokenizer(hub).model_max_length == 128
    assert load_tokenizer(hub, revision="pruned").model_max_length == 77
    with pytest.raises(ModelError, match="the configuration of tiny/llama cannot be read"):
        load_config(hub, revision="none")
    assert identity(hub, load_config(hub)).weights == f"{hub}@{'1' * 40}"
    assert identity(hub, load_config(hub), "pruned").weights == f"{hub}@{'2' * 40}"


def test_revision_on_the_command_line(cli: Cli, hub: str, corpus_file: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    assert cli("inspect", "-m", hub, "--json", result).code == 0
    assert len(json.loads(result.read_text())["layers"]) == 2
    assert cli("inspect", "-m", hub, "--revision", "pruned", "--json", result).code == 0
    inspected = json.loads(result.read_text())
    assert len(inspected["layers"]) == 3 and inspected["budget"] is not None  # the record is read at the revision too
    again = ("--method", "magnitude", "--revision", "pruned", tmp_path / "out")
    assert cli("export", "-m", hub, *again).code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3

    corpus = ("--dataset", corpus_file, "--num-samples", 2, "--seq-len", 16, "--json", result)
    assert cli("evaluate", "-m", tmp_path / "out", "--dense", hub, "--revision", "pruned", *corpus).code == 0
    dense, own = json.loads(result.read_text())["models"]
    assert own["parameters"] < dense["parameters"] == inspected["parameters"]

    evaluated = ("--evaluate", f"own={corpus_file}", "--eval-seq-len", 16, "--eval-samples", 2, "--no-plot")
    cells = ("--methods", "magnitude", "--keep-ratios", "0.9", "--revision", "pruned")
    assert cli("compare", "-m", hub, *cells, *evaluated, tmp_path / "compared", "--json", result).code == 0
    assert json.loads(result.read_text())["model"]["weights"] == f"{hub}@{'2' * 40}"


def test_benchmark_reads_and_serves_the_revision(hub: str) -> None:
    dense, pruned = read_checkpoints(hub, [f"again={hub}"], revision="pruned")
    assert len(dense.ffn_widths) == len(pruned.ffn_widths) == 3 and pruned.kept["prunable"] <= 0.8
    assert launch_with([], kv_bytes=None, revision="pruned").flags[-4:] == (
        *("--revision", "pruned", "--tokenizer-revision", "pruned"),
    )
    ((flag, folder),) = [tokenizer_flags(dense, "pruned")]
    assert flag == "--tokenizer" and folder.endswith("2" * 40)
    assert tokenizer_flags(dense, None) == []


@pytest.mark.parametrize("command", ["export", "evaluate", "inspect", "compare", "benchmark"])
def test_revision_of_a_folder_is_refused(cli: Cli, command: str, model_folder: Path, tmp_path: Path) -> None:
    options: dict[str, tuple[object, ...]] = {
        "export": ("-m", model_folder, "--method", "magnitude", tmp_path / "out"),
        "evaluate": ("-m", model_folder),
        "inspect": ("-m", model_folder),
        "compare": (
            "-m",
            model_folder,
            "--methods",
            "magnitude",
            "--keep-ratios",
            "0.5",
            "--no-plot",
            tmp_path / "out",
        ),
        "benchmark": (
            *("--dense", model_folder, "--pruned", model_folder, "--mode", "generate", "--no-plot"),
            tmp_path / "out",
        ),
    }
    outcome = cli(command, *options[command], "--revision", "v2")
    one_line(outcome, f"--revision v2: {model_folder} is a folder; only models of the Hub have revisions")
    assert not (tmp_path / "out").exists()
    check_revision("v2", [str(model_folder), "some/model"])  # it is the other one's


def test_load_pruned_model_passes_on_what_transformers_takes(pruned_folder: Path) -> None:
    model = load_pruned_model(pruned_folder, attn_implementation="eager", dtype=torch.bfloat16, trust_remote_code=True)
    assert model.config._attn_implementation == "eager" and model.dtype == torch.bfloat16
    with pytest.raises(OptionError, match="attn_implementation='magic'"):
        load_pruned_model(pruned_folder, attn_implementation="magic")


def test_load_pruned_model_with_a_device_map(pruned_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="device='cpu': has no meaning beside device_map"):
        load_pruned_model(pruned_folder, device="cpu", device_map="auto")
    monkeypatch.setattr(optimum_grasprune.loading, "is_accelerate_available", lambda: False)
    with pytest.raises(OptionError, match="device_map='auto': needs accelerate: pip install accelerate"):
        load_pruned_model(pruned_folder, device_map="auto")
    monkeypatch.undo()
    pytest.importorskip("accelerate")
    assert load_pruned_model(pruned_folder, device_map={"": "cpu"}).device.type == "cpu"


def test_load_pruned_model_refuses_a_dense_one(model_folder: Path, hub: str) -> None:
    for dense in (model_folder, hub):
        with pytest.raises(CheckpointError, match=f"{dense} is not a pruned checkpoint: load it with Auto"):
            load_pruned_model(dense)
    assert load_pruned_model(hub, revision="pruned").config.model_type == "grasp_llama"


def test_load_pruned_model_takes_one_of_single_weights(tmp_path: Path) -> None:
    config = GRASPConfig(method="statistical", pattern="2:4", num_samples=2, seq_len=8)
    pruner = GRASPPruner(config)
    pruner.prune_model(make_model(), make_tokenizer(), texts=["Some text to look at. " * 20])
    pruner.save(tmp_path / "sparse")
    assert load_pruned_model(tmp_path / "sparse").config.model_type == "llama"


@pytest.mark.parametrize("name", ["LLaMAForCausalLM", "YiForCausalLM", "MistralForCausalLM", "LlamaForCausalLM"])
def test_old_names_of_the_architecture(cli: Cli, model_folder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    described(architectures=[name])(folder)
    assert cli("export", "-m", folder, "--method", "magnitude", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["GRASPLlamaForCausalLM"]


def test_a_tokenizer_that_tokenizes_nothing(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": [128]}))
    with pytest.raises(ModelError, match="the tokenizer of .* cannot be read: '>' not supported"):
        load_tokenizer(str(folder))


# Windows of evaluation ----------------------------------------------------------------------------------------------


def test_window_is_what_all_models_read(cli: Cli, corpus_file: Path, tmp_path: Path) -> None:
    for name, longest in (("longer", 96), ("shorter", 40)):
        make_model(max_position_embeddings=longest).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    result = tmp_path / "result.json"
    corpus = ("--dataset", corpus_file, "--num-samples", 3, "--json", result)
    assert cli("evaluate", "-m", tmp_path / "longer", *corpus).code == 0
    assert json.loads(result.read_text())["models"][0]["window"] == 96
    assert cli("evaluate", "-m", tmp_path / "longer", "--dense", tmp_path / "shorter", *corpus).code == 0
    assert [model["window"] for model in json.loads(result.read_text())["models"]] == [40, 40]
    outcome = cli("evaluate", "-m", tmp_path / "longer", tmp_path / "shorter", *corpus, "--seq-len", 41)
    one_line(outcome, f"--seq-len 41: the model {tmp_path / 'shorter'} reads at most 40 tokens")

    cells = ("--methods", "magnitude", "--keep-ratios", "0.9", "--no-plot", "--eval-samples", 3)
    compared = ("--evaluate", f"own={corpus_file}", "--json", result, tmp_path / "compared")
    assert cli("compare", "-m", tmp_path / "shorter", *cells, *compared).code == 0
    assert json.loads(result.read_text())["corpora"]["own"]["window"] == 40


def test_context_too_short_for_any_prediction() -> None:
    config = make_model(max_position_embeddings=1).config
    with pytest.raises(ModelError, match="the model reads at most 1 tokens, too few"):
        calibration_length(config, None)
    assert calibration_length(make_model(max_position_embeddings=2).config, None) == 2
    with pytest.raises(ModelError, match="the model x reads at most 1 tokens, too few"):
        common_window({"the model x": config}, None, 512, "seq_len")


# The table of inspect -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ({}, {"embedding": 258 * 32, "head": 258 * 32, "norms_and_biases": 7 * 32}),
        ({"tie_word_embeddings": True}, {"embedding": 258 * 32, "norms_and_biases": 7 * 32}),
        (
            {"attention_bias": True, "mlp_bias": True},
            {"embedding": 258 * 32, "head": 258 * 32, "norms_and_biases": 13 * 32},  # biases of output projections
        ),
    ],
)
def test_every_parameter_is_in_the_table(
    cli: Cli,
    tmp_path: Path,
    options: dict[str, Any],
    others: dict[str, int],
) -> None:
    model = make_model(**options)
    model.save_pretrained(tmp_path / "model")
    outcome = cli("inspect", "-m", tmp_path / "model", "--json", tmp_path / "result.json")
    assert outcome.code == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["other_parameters"] == others
    in_layers = sum(layer["parameters"] for layer in result["layers"])
    assert in_layers + sum(others.values()) == result["parameters"] == model.num_parameters()
    for name, count in [*others.items(), ("all", model.num_parameters())]:
        row = next(line for line in outcome.out.splitlines() if line.strip("│| ").startswith(name.replace("_", " ")))
        assert f"{count:,}" in row


# Quantised models, where nothing is pruned --------------------------------------------------------------------------


def test_inspecting_a_quantised_model(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    described(quantization_config={"quant_method": "gptq", "bits": 4})(folder)
    outcome = cli("inspect", "-m", folder, "--json", tmp_path / "result.json")
    assert outcome.code == 0 and "the weights are quantised: gptq, 4 bits" in outcome.out
    assert json.loads((tmp_path / "result.json").read_text())["quantization"] == "gptq, 4 bits"
    one_line(
        cli("inspect", "-m", folder, "--gpu-memory", "24GiB"),
        "--gpu-memory 24GiB: the model is quantised (gptq, 4 bits); what fits is known of plain weights only",
    )


@pytest.mark.parametrize(
    "how",
    [{"compression_config": {"format": "int-quantized"}}, {"quantization_config": {"quant_method": "brand-new"}}],
    ids=lambda how: next(iter(how)),
)
def test_packed_weights_that_nothing_here_unpacks(
    cli: Cli,
    model_folder: Path,
    corpus_file: Path,
    tmp_path: Path,
    how: dict[str, Any],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    described(**how)(with_tensor(UP, lambda tensor: tensor.to(torch.int8))(folder))
    outcome = cli("evaluate", "-m", folder, "--dataset", corpus_file, "--seq-len", 16, "--num-samples", 1)
    one_line(outcome, f"are quantised ({UP} is stored as I8)")


def test_evaluating_a_pruned_model_that_was_quantised(
    cli: Cli,
    pruned_folder: Path,
    corpus_file: Path,
    tmp_path: Path,
) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    model = load_pruned_model(pruned_folder)
    quantization.apply_quantization_config(
        model, quantization.QuantizationConfig(config_groups={"W8A8": ["Linear"]}, ignore=["lm_head"])
    )
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.detach().abs().amax(dim=1, keepdim=True) / 127
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "quantised")
    compressor.update_config(tmp_path / "quantised")
    make_tokenizer().save_pretrained(tmp_path / "quantised")
    result = tmp_path / "result.json"
    corpus = ("--dataset", corpus_file, "--num-samples", 2, "--json", result)
    outcome = cli("evaluate", "-m", tmp_path / "quantised", "--dense", pruned_folder, *corpus)
    assert outcome.code == 0, outcome.error_lines
    plain, quantised = json.loads(result.read_text())["models"]
    assert quantised["parameters"] == plain["parameters"]
    assert quantised["perplexity"] != plain["perplexity"]
    assert quantised["perplexity"] == pytest.approx(plain["perplexity"], rel=0.05)
    one_line(
        cli("export", "-m", tmp_path / "quantised", "--method", "magnitude", tmp_path / "out"),
        "is quantised (compressed-tensors, 8 bits): prune the unquantised model, and quantise the pruned one",
    )
