"""What is not refused: models that look odd, and compute what the stock model of their configuration does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.admission import check_model
from optimum_grasprune.errors import ModelError
from tests.commands.test_refusals import Cli, described, one_line
from tests.conftest import make_model, make_tokenizer

CUSTOM = """
from transformers import LlamaForCausalLM


class StockForCausalLM(LlamaForCausalLM):
    def prepare_inputs_for_generation(self, *arguments, **options):
        return super().prepare_inputs_for_generation(*arguments, **options)


class DoubledForCausalLM(LlamaForCausalLM):
    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.logits = 2 * output.logits
        return output
"""


def custom(folder: Path, name: str) -> Path:
    (folder / "modeling_custom.py").write_text(CUSTOM)
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return described(auto_map={"AutoModelForCausalLM": f"modeling_custom.{name}"})(folder)


class Plain(LlamaForCausalLM):
    """Overrides nothing that computes logits."""

    def generate(self, *arguments: Any, **options: Any) -> Any:
        return super().generate(*arguments, **options)


def checkpointed(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.gradient_checkpointing_enable()
    return model.train()


def resized(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.resize_token_embeddings(270)
    return model


def observed(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.model.layers[0].register_forward_hook(lambda *_: None)
    model.enable_input_require_grads()
    return model


def with_attention(name: str) -> Callable[[LlamaForCausalLM], LlamaForCausalLM]:
    def change(model: LlamaForCausalLM) -> LlamaForCausalLM:
        model.set_attn_implementation(name)
        return model

    return change


def dequantised(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(dequantize=True, quant_method="gguf"))
    return model


def narrowed(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """As tools leave it that cut units in memory."""
    mlp = model.model.layers[1].mlp
    mlp.gate_proj.weight = nn.Parameter(mlp.gate_proj.weight[:40].detach())
    mlp.up_proj.weight = nn.Parameter(mlp.up_proj.weight[:40].detach())
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, :40].detach())
    return model


CHANGES: dict[str, Callable[[LlamaForCausalLM], LlamaForCausalLM]] = {
    "bfloat16, buffers too": lambda model: model.to(torch.bfloat16),
    "float16": lambda model: model.half(),
    "float64": lambda model: model.double(),
    "subclass": lambda model: setattr(model, "__class__", Plain) or model,
    "gradient checkpointing": checkpointed,
    "frozen": lambda model: model.requires_grad_(False),
    "resized vocabulary": resized,
    "hooks that look on": observed,
    "eager attention": with_attention("eager"),
    "flex attention": with_attention("flex_attention"),
    "dequantised": dequantised,
    "narrowed": narrowed,
    "on one device": lambda model: setattr(model, "hf_device_map", {"": "cpu"}) or model,
    "quantised to nothing": lambda model: setattr(model.config, "quantization_config", None) or model,
}


@pytest.mark.parametrize("change", CHANGES)
def test_models_that_compute_as_the_stock_one_does(change: str) -> None:
    check_model(CHANGES[change](make_model()))


@pytest.mark.parametrize(
    "options",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4, "num_hidden_layers": 1},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
        {"hidden_act": "relu", "rms_norm_eps": 1e-3, "pad_token_id": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_configurations_of_many_kinds(options: dict[str, Any]) -> None:
    model = make_model(**options)
    model(torch.zeros(1, 200, dtype=torch.int64))  # longer than it was made for: dynamic frequencies follow
    check_model(model)


def test_pruned_model_is_pruned_again_also_where_its_code_came_with_it(remote_code: None, tmp_path: Path) -> None:
    pruner = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.8))
    check_model(pruner.prune_model(make_model(), make_tokenizer()))
    pruner.save(tmp_path / "pruned")
    cls = get_class_from_dynamic_module("modeling_grasp.GRASPLlamaForCausalLM", str(tmp_path / "pruned"))
    assert cls.__module__.startswith("transformers_modules.")
    model = cls.from_pretrained(tmp_path / "pruned")
    check_model(model)
    again = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.8)).prune_model(model, make_tokenizer())
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in model.parameters())


def test_code_that_comes_with_a_model(cli: Cli, remote_code: None, corpus_file: Path, tmp_path: Path) -> None:
    options = ("--method", "magnitude", "--trust-remote-code")
    (tmp_path / "own").mkdir()
    own = custom(tmp_path / "own", "DoubledForCausalLM")
    outcome = cli("export", "-m", own, *options, tmp_path / "out")
    one_line(outcome, "DoubledForCausalLM, whose forward is not that of LlamaForCausalLM")
    assert not (tmp_path / "out").exists()
    corpus = ("--evaluate", f"own={corpus_file}", "--no-plot", "--keep-ratios", "0.5")
    outcome = cli("compare", "-m", own, "--methods", "magnitude", *corpus, "--trust-remote-code", tmp_path / "compared")
    one_line(outcome, "DoubledForCausalLM, whose forward is not that of LlamaForCausalLM")
    assert not [path for path in (tmp_path / "compared").rglob("*") if path.is_file()]  # not a cell, nor the dense one
    model = AutoModelForCausalLM.from_pretrained(own, trust_remote_code=True)
    with pytest.raises(ModelError, match="DoubledForCausalLM, whose forward is not"):
        GRASPPruner(GRASPConfig(method="magnitude")).prune_model(model, make_tokenizer())

    (tmp_path / "stock").mkdir()
    stock = custom(tmp_path / "stock", "StockForCausalLM")
    assert cli("export", "-m", stock, *options, tmp_path / "out").code == 0


def offloaded(folder: Path, **places: str) -> PreTrainedModel:
    """A model whose layers stay in its files; places: of other modules."""
    pytest.importorskip("accelerate")
    placed = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    return AutoModelForCausalLM.from_pretrained(folder, device_map={**placed, "lm_head": "cpu", **places})


def test_model_that_accelerate_offloads(model_folder: Path) -> None:
    check_model(offloaded(model_folder))
    check_model(offloaded(model_folder, lm_head="disk"))


def test_offloaded_weights_are_read(tmp_path: Path) -> None:
    broken = make_model()
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    broken.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="weights that are not finite, in model.layers.1.mlp.up_proj.weight"):
        check_model(offloaded(tmp_path))


def test_half_offloaded_models(model_folder: Path) -> None:
    """As they are left by who takes hooks off, puts other hooks on, or moves weights behind accelerate's back."""
    accelerate = pytest.importorskip("accelerate")
    model = offloaded(model_folder)
    accelerate.hooks.remove_hook_from_submodules(model)
    with pytest.raises(ModelError, match="weights are not in memory"):
        check_model(model)
    model = offloaded(model_folder)
    accelerate.hooks.remove_hook_from_module(model.model.layers[1].mlp.up_proj)
    with pytest.raises(ModelError, match="weights are not in memory"):
        check_model(model)
    model, _ = accelerate.cpu_offload_with_hook(make_model(), torch.device("cpu"))
    with pytest.raises(ModelError, match="moved about by accelerate's hooks"):
        check_model(model)
    model = offloaded(model_folder)
    accelerate.hooks.remove_hook_from_module(model.lm_head)
    with pytest.raises(ModelError, match="nothing brings the inputs of lm_head to where its weights are"):
        check_model(model)


def test_a_forward_that_is_patched_around_accelerates(model_folder: Path) -> None:
    model = offloaded(model_folder)
    mlp = model.model.layers[1].mlp
    inner = mlp.forward
    mlp.forward = lambda *args: 2 * inner(*args)
    with pytest.raises(ModelError, match="the forward of model.layers.1.mlp has been replaced by"):
        check_model(model)
    mlp.forward = functools.wraps(inner)(lambda *args: 2 * inner(*args))
    with pytest.raises(ModelError, match="the forward of model.layers.1.mlp has been replaced by"):
        check_model(model)


def test_adapters_of_peft() -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")

    def named() -> LlamaForCausalLM:
        model = make_model()
        model.name_or_path = "base"  # peft warns where there is none
        return model

    with pytest.raises(ModelError, match="is a PeftModelForCausalLM, a model with an adapter: merge the adapter first"):
        check_model(peft.get_peft_model(named(), settings))
    with pytest.raises(ModelError, match="the model has an adapter in model.layers.0.self_attn.q_proj"):
        check_model(peft.inject_adapter_in_model(settings, named()))
    model = named()
    model.add_adapter(settings)
    with pytest.raises(ModelError, match="the model has adapters"):
        check_model(model)
    check_model(peft.get_peft_model(named(), settings).merge_and_unload())
