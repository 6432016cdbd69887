"""Whatever cannot be pruned is refused in one line before anything is computed with the model, and nothing is written.

A row of each table is one bad input: how it is made from a good one, and what the line says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from optimum_grasprune import GRASPConfig, GRASPPruner, PruningPlan, UnitMask
from optimum_grasprune.errors import GraspruneError, ModelError
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import load_config, load_model, require_unquantised
from tests.commands.conftest import Outcome
from tests.conftest import make_model, make_tokenizer

Cli = Callable[..., Outcome]
QUICK = ("--num-samples", 4, "--seq-len", 24, "--epochs", 1)
HERE = __name__
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def nothing_computed() -> Iterator[None]:
    """Fails the test if any module of any model was called."""
    called: list[str] = []
    handle = register_module_forward_pre_hook(lambda module, _: called.append(type(module).__name__))
    yield
    handle.remove()
    assert not called


def described(**values: Any) -> Callable[[Path], Path]:
    """The model with other values in its config.json."""

    def make(folder: Path) -> Path:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
        return folder

    return make


def quantised(**values: Any) -> Callable[[Path], Path]:
    return described(quantization_config=values)


def with_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], Path]:
    """The model with a tensor of its file changed."""

    def make(folder: Path) -> Path:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = change(tensors[name]).clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def poisoned(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, 1] = value
        return tensor

    return change


def with_file(name: str, content: dict[str, Any] | bytes, *, alone: bool = False) -> Callable[[Path], Path]:
    """A file beside the model's, or in place of them."""

    def make(folder: Path) -> Path:
        if alone:
            for file in folder.iterdir():
                file.unlink()
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return folder

    return make


def single_gguf(folder: Path) -> Path:
    file = folder.parent / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    return file


INT8_WEIGHTS = {"group_0": {"input_activations": {"num_bits": 16}, "weights": {"num_bits": 8, "type": "int"}}}
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "gptq": (quantised(quant_method="gptq", bits=4), "is quantised (gptq, 4 bits): prune the unquantised model"),
    "awq": (quantised(quant_method="awq", w_bit=4), "is quantised (awq, 4 bits)"),
    "bitsandbytes": (quantised(quant_method="bitsandbytes", load_in_8bit=True), "(bitsandbytes, 8 bits)"),
    "bitsandbytes-old": (quantised(load_in_4bit=True), "is quantised (bitsandbytes, 4 bits)"),
    "fp8": (quantised(quant_method="fp8", weight_block_size=[128, 128]), "is quantised (fp8)"),
    "mxfp4": (quantised(quant_method="mxfp4"), "is quantised (mxfp4)"),
    "hqq": (quantised(quant_method="hqq", quant_config={"weight_quant_params": {"nbits": 3}}), "(hqq, 3 bits)"),
    "torchao": (quantised(quant_method="torchao", quant_type={"default": {"_type": "X"}}), "is quantised (torchao)"),
    "compressed": (
        quantised(quant_method="compressed-tensors", config_groups=INT8_WEIGHTS),
        "is quantised (compressed-tensors, 8 bits)",
    ),
    "compressed-old": (
        described(compression_config={"config_groups": INT8_WEIGHTS}),
        "is quantised (compressed-tensors, 8 bits)",
    ),
    "quantised-somehow": (quantised(group_size=64), "is quantised (by a method that config.json does not name)"),
    "packed-int8": (
        with_tensor(UP, lambda tensor: tensor.to(torch.int8)),
        f"are quantised ({UP} is stored as I8), and its config.json does not say how",
    ),
    "cast-to-fp8": (
        with_tensor(UP, lambda tensor: tensor.to(torch.float8_e4m3fn)),
        f"are quantised ({UP} is stored as F8_E4M3)",
    ),
    "gguf": (single_gguf, "is a GGUF file"),
    "gguf-folder": (with_file("m-Q4.gguf", b"GGUF", alone=True), "holds a GGUF file (m-Q4.gguf)"),
    "adapter-beside": (
        with_file("adapter_config.json", ADAPTER),
        "a PEFT adapter (adapter_config.json) lies beside the model in",
    ),
    "adapter-alone": (
        with_file("adapter_config.json", ADAPTER, alone=True),
        "is a PEFT adapter for some/base, not a model: merge it first",
    ),
    "adapter-broken": (with_file("adapter_config.json", b"[", alone=True), "is a PEFT adapter, not a model"),
    "classifier": (
        described(architectures=["LlamaForSequenceClassification"]),
        "is not a causal language model: its architecture is LlamaForSequenceClassification",
    ),
    "base-model": (described(architectures=["LlamaModel"]), "its architecture is LlamaModel"),
    "draft-head": (described(architectures=["LlamaForCausalLMEagle3"]), "its architecture is LlamaForCausalLMEagle3"),
    "unknown-type": (described(model_type="Yi"), "model type 'Yi' is not supported; supported are: LLaMA (llama"),
    "no-layers": (described(num_hidden_layers=0), "is of no whole model: num_hidden_layers is 0"),
    "no-channels": (described(intermediate_size=0), "intermediate_size is 0"),
    "no-heads": (described(num_key_value_heads=0), "num_key_value_heads is 0"),
    "uneven-heads": (described(num_key_value_heads=3), "4 attention heads, no multiple of its 3 key-value heads"),
    "layers-in-words": (
        described(num_hidden_layers="three"),
        "Validation error for field 'num_hidden_layers': TypeError: Field 'num_hidden_layers' expected int, got str",
    ),
    "no-such-dtype": (described(dtype="float99"), "the configuration of"),
    "no-such-activation": (described(hidden_act="magic"), "magic"),
    "short-tensor": (
        with_tensor(UP, lambda tensor: tensor[1:]),
        f"are damaged: {UP} has the shape (47, 32), and config.json asks for (48, 32)",
    ),
    "wide-embedding": (described(vocab_size=300), "has the shape (258, 32), and config.json asks for (300, 32)"),
    "enormous-embedding": (described(vocab_size=2**40), "config.json asks for (1099511627776, 32)"),
    "layers-without-end": (described(num_hidden_layers=2**31), "asks for more than 10,000 layers"),
    "layers-without-weights": (described(num_hidden_layers=30), "numbers are stored, and config.json asks for"),
    "architecture-of-no-name": (described(architectures=[None]), "architectures should be a list of names, not [None]"),
    "type-of-no-name": (described(model_type=["llama"]), "the configuration of"),
    "module-for-a-dtype": (described(dtype="nn"), "dtype should be the name of a data type, not 'nn'"),
    "list-of-dtypes": (described(torch_dtype=[0]), "torch_dtype should be the name of a data type, not [0]"),
    "quantised-in-a-word": (
        described(quantization_config="gptq"),
        "quantization_config should be an object, not 'gptq'",
    ),
    "configuration-of-no-fields": (with_file("config.json", b'"llama"'), "the configuration of"),
    "configuration-without-end": (with_file("config.json", b'{"a":' * 99_999), "the configuration of"),
    "adapter-without-end": (with_file("adapter_config.json", b"[" * 99_999), "a PEFT adapter"),
    "index-of-lists": (
        with_file("model.safetensors.index.json", {"weight_map": {"a": [], "b": 1}}),
        "model.safetensors.index.json is damaged",
    ),
    "index-of-other-folders": (
        with_file("model.safetensors.index.json", {"weight_map": {UP: "../other/model.safetensors"}}),
        "model.safetensors.index.json is damaged",
    ),
    "nan": (with_tensor(UP, poisoned(float("nan"))), f"has weights that are not finite, in {UP}"),
    "infinite": (with_tensor("lm_head.weight", poisoned(float("-inf"))), "are not finite, in lm_head.weight"),
}


@pytest.fixture(params=FOLDERS)
def bad_source(request: pytest.FixtureRequest, model_folder: Path, tmp_path: Path) -> tuple[str, str]:
    """A source that cannot be pruned, and what the line says."""
    make, message = FOLDERS[request.param]
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    return str(make(folder)), message


def one_line(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1, outcome.error_lines
    assert message in outcome.error_lines[0]


@pytest.mark.parametrize("method", ["grasprune", "magnitude"])
@pytest.mark.usefixtures("nothing_computed")
def test_export(
    cli: Cli,
    bad_source: tuple[str, str],
    corpus_file: Path,
    tmp_path: Path,
    method: str,
) -> None:
    source, message = bad_source
    before = sorted(tmp_path.iterdir())
    one_line(
        cli("export", "-m", source, "--method", method, "--dataset", corpus_file, *QUICK, tmp_path / "out"), message
    )
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("nothing_computed")
def test_compare(cli: Cli, bad_source: tuple[str, str], corpus_file: Path, tmp_path: Path) -> None:
    source, message = bad_source
    data = ("--dataset", corpus_file, "--evaluate", f"own={corpus_file}", "--eval-seq-len", 32, "--no-plot")
    chosen = ("--methods", "magnitude", "--keep-ratios", "0.5")
    one_line(cli("compare", "-m", source, *chosen, *QUICK, *data, tmp_path / "out"), message)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("nothing_computed")
def test_loading_in_python(bad_source: tuple[str, str]) -> None:
    source, message = bad_source
    with pytest.raises(GraspruneError) as caught:
        require_unquantised(source, load_config(source))
        load_model(source)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# Models in memory ---------------------------------------------------------------------------------------------------


class Doubled(LlamaForCausalLM):
    """A class with a forward of its own."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        output.logits = 2 * output.logits
        return output


class Squared(nn.Module):
    """A norm that is none."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden**2 * self.weight


class OtherMLP(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x


class PackedLinear(nn.Linear):
    """As the layers of quantisers are."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ self.weight.T


class PackedTensor(torch.Tensor):
    """As the tensors of torchao and quanto are: of a float type to look at."""


class PeftModelForCausalLM(nn.Module):
    """Has what the class of this name in peft has, which need not be installed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model, self.peft_config = model, {"default": object()}

    def merge_and_unload(self) -> nn.Module:
        return self.base_model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)


def altered(change: Callable[[LlamaForCausalLM], Any]) -> Callable[[], Any]:
    """The good model after a change, or what the change makes of it."""

    def make() -> Any:
        model = make_model()
        result = change(model)
        return model if result is None else result

    return make


def setting(path: str, value: Any) -> Callable[[], Any]:
    """The good model with an attribute of a module set; a function is given the module."""

    def change(model: LlamaForCausalLM) -> None:
        owner, _, name = path.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, name, value(module) if callable(value) else value)

    return altered(change)


def of_class(path: str, cls: type[nn.Module]) -> Callable[[], Any]:
    def change(model: LlamaForCausalLM) -> None:
        model.get_submodule(path).__class__ = cls

    return altered(change)


def patched_forward(model: LlamaForCausalLM) -> None:
    mlp = model.model.layers[1].mlp
    stock = mlp.forward
    mlp.forward = lambda x: 2 * stock(x)  # type: ignore[method-assign]


def packed(module: nn.Module) -> nn.Parameter:
    return nn.Parameter(module.weight.data.to(torch.uint8), requires_grad=False)


def subclassed(module: nn.Module) -> nn.Parameter:
    return nn.Parameter(module.weight.data.as_subclass(PackedTensor))


def nan_in_norm(model: LlamaForCausalLM) -> None:
    model.model.norm.weight.data[3] = float("nan")


def overflowing(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.lm_head.weight.data[0, 0] = 1e6
    return model.half()


def with_hook(model: LlamaForCausalLM) -> None:
    model.model.layers[0]._hf_hook = object()


def parametrized(model: LlamaForCausalLM) -> None:
    nn.utils.parametrizations.weight_norm(model.lm_head)


def shared_layers(model: LlamaForCausalLM) -> None:
    model.model.layers[2] = model.model.layers[1]


UP_PROJ = "model.layers.1.mlp.up_proj"
SMALL = make_model().config
OBJECTS: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: None, "None is no model: load one with AutoModelForCausalLM.from_pretrained"),
    "path": (lambda: "./llama", "'./llama' is no model: load one with"),
    "path-object": (lambda: Path("llama"), "is no model: load one with"),
    "state": (lambda: make_model().state_dict(), "an object of class OrderedDict is no model"),
    "tokenizer": (make_tokenizer, "a tokenizer stands where the model belongs: prune_model(model, tokenizer)"),
    "module": (lambda: nn.Linear(2, 2), "a Linear is no causal language model of transformers"),
    "sequential": (altered(nn.Sequential), "a Sequential is no causal language model of transformers"),
    "compiled": (altered(torch.compile), "the model is compiled (torch.compile): give model._orig_mod"),
    "compiled-in-place": (altered(lambda model: model.compile()), "the model is compiled (torch.compile)"),
    "compiled-layer": (
        altered(lambda model: model.model.layers[1].compile()),
        "model.layers.1 is compiled (torch.compile)",
    ),
    "compiled-inside": (
        setting("model.layers.1.mlp", lambda module: torch.compile(module.mlp)),
        "model.layers.1.mlp is of class OptimizedModule",
    ),
    "parallel": (altered(nn.DataParallel), "the model is wrapped in DataParallel: give model.module"),
    "adapter": (
        altered(PeftModelForCausalLM),
        f"the model is a {PeftModelForCausalLM.__name__}, a model with an adapter: merge the adapter first",
    ),
    "adapter-loaded": (setting("_hf_peft_config_loaded", True), "the model has adapters (load_adapter)"),
    "base-model": (altered(lambda model: model.model), "a LlamaModel is not a causal language model"),
    "classifier": (
        lambda: LlamaForSequenceClassification(SMALL),
        "a LlamaForSequenceClassification is not a causal language model",
    ),
    "other-family": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)),
        "model type 'gpt2' is not supported; supported are: LLaMA",
    ),
    "own-class": (
        of_class("", Doubled),
        f"the model is of class {HERE}.Doubled, whose forward is not that of",
    ),
    "own-mlp": (
        of_class("model.layers.1.mlp", OtherMLP),
        f"model.layers.1.mlp is of class {HERE}.OtherMLP",
    ),
    "own-norm": (
        setting("model.norm", lambda module: Squared(module.norm.weight)),
        f"model.norm is of class {HERE}.Squared",
    ),
    "own-activation": (
        setting("model.layers.0.mlp.act_fn", lambda _: nn.ReLU()),
        "act_fn is of class ReLU",
    ),
    "own-scale": (setting("model.layers.0.self_attn.scaling", 0.5), "not as the configuration says: scaling is 0.5"),
    "own-rotary": (
        setting("model.rotary_emb.inv_freq", lambda module: module.inv_freq / 4),
        "model.rotary_emb.inv_freq has other values than the configuration gives",
    ),
    "own-head": (setting("v_head", lambda _: nn.Linear(32, 1)), "has a module that LlamaForCausalLM has not: v_head"),
    "patched": (
        altered(patched_forward),
        f"the forward of model.layers.1.mlp has been replaced by {HERE}.",
    ),
    "patched-model": (setting("forward", lambda _: nothing_computed), "the forward of the model has been replaced by "),
    "other-linear": (of_class(UP_PROJ, PackedLinear), f"{UP_PROJ} is of class {HERE}.PackedLinear"),
    "parametrized": (altered(parametrized), "has a module that LlamaForCausalLM has not: lm_head.parametrizations"),
    "shared-layers": (altered(shared_layers), "has no module model.layers.2"),
    "own-embedding": (
        setting("model.embed_tokens", lambda _: nn.Embedding(300, 32)),
        "model.embed_tokens.weight has the shape (300, 32); the configuration says (258, 32)",
    ),
    "extra-bias": (
        setting("lm_head.bias", lambda _: nn.Parameter(torch.zeros(258))),
        "has a parameter that LlamaForCausalLM has not: lm_head.bias",
    ),
    "packed": (
        setting(f"{UP_PROJ}.weight", packed),
        f"is quantised ({UP_PROJ}.weight: Parameter, torch.uint8)",
    ),
    "subclassed": (setting(f"{UP_PROJ}.weight", subclassed), f"the model is quantised ({UP_PROJ}.weight: PackedTensor"),
    "says-quantised": (
        altered(lambda model: setattr(model.config, "quantization_config", {"quant_method": "gptq", "bits": 4})),
        "the model is quantised (gptq, 4 bits): prune the unquantised model",
    ),
    "meta": (altered(lambda model: model.to("meta")), "weights are not in memory"),
    "partly-meta": (altered(lambda model: model.model.layers[1].to("meta") and None), "weights are not in memory"),
    "offloaded": (setting("hf_device_map", {"model": "cpu", "lm_head": "disk"}), "weights are not in memory"),
    "spread": (setting("hf_device_map", {"model": "cuda:0", "lm_head": "cuda:1"}), "spread over cuda:0, cuda:1"),
    "hooked": (altered(with_hook), "moved about by accelerate's hooks"),
    "no-layers": (lambda: make_model(num_hidden_layers=0), "num_hidden_layers is 0"),
    "nan": (altered(nan_in_norm), "the model has weights that are not finite, in model.norm.weight"),
    "overflow": (altered(overflowing), "in lm_head.weight: a value that float16 cannot hold"),
}


@pytest.mark.parametrize("case", OBJECTS)
def test_pruning_in_python(case: str, nothing_computed: None) -> None:
    make, message = OBJECTS[case]
    model = make()
    with pytest.raises(ModelError) as caught:
        GRASPPruner(GRASPConfig(method="magnitude")).prune_model(model, make_tokenizer())
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("case", OBJECTS)
def test_replaying_in_python(case: str, nothing_computed: None) -> None:
    make, message = OBJECTS[case]
    good = make_model()
    inventory = family_of(good.config).inventory(good)
    plan = PruningPlan.from_mask(UnitMask(inventory, torch.ones(inventory.num_units, dtype=torch.bool)))
    with pytest.raises(ModelError) as caught:
        GRASPPruner(GRASPConfig()).replay(make(), make_tokenizer(), plan)
    assert message in str(caught.value)
