"""The formulas beside the bytes of all tensors that are alive while a real step runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from optimum_grasprune import GRASPConfig
from optimum_grasprune.estimate.activations import Trained, forward_pass, training_step
from optimum_grasprune.estimate.sizes import Sizes
from optimum_grasprune.execution import Training, WholeModel
from optimum_grasprune.families import family_of, linears
from optimum_grasprune.gates import train_gates
from optimum_grasprune.methods import get_method
from optimum_grasprune.recovery.diagonals import DiagonalMultipliers
from optimum_grasprune.statistics import PER_TOKEN
from tests.conftest import make_model

TOKENS = 120


class Alive(TorchDispatchMode):
    """Counts the bytes of what operations make, while it is there. peak: the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {_address(each) for each in tree_leaves((args, kwargs or {})) if isinstance(each, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (key := _address(tensor)) not in given | self._known.keys():
                storage = tensor.untyped_storage()
                self._known[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key)
        return made

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def llama(**sizes: int) -> LlamaForCausalLM:
    return make_model(
        **{
            "vocab_size": 700,
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 5,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 16,
            **sizes,
        }
    )


def opt() -> OPTForCausalLM:
    values = {"vocab_size": 700, "hidden_size": 128, "ffn_dim": 512, "num_hidden_layers": 5}
    return OPTForCausalLM(OPTConfig(**values, num_attention_heads=8, word_embed_proj_dim=128)).eval()


def measured(model: PreTrainedModel, what: str, *, batch: int = 1, checkpointing: bool = False) -> int:
    """Bytes at the peak, of a step on `TOKENS` tokens, or a pass."""
    runner, length = WholeModel(model), TOKENS // batch
    tokens_NS = torch.randint(3, 258, (batch, length))
    config = GRASPConfig(gradient_checkpointing=checkpointing, batch_size=batch, seq_len=length, kl_weight=0)
    with Alive() as alive:
        if what == "gates":
            budget = get_method("grasprune").budget(config, model, runner.family, runner.inventory, 0)
            train_gates(runner, budget, tokens_NS, config)
        elif what == "diagonals":
            training = Training.of(config, what, epochs=1, learning_rate=1e-2, kl_weight=0.5)
            runner.learn(DiagonalMultipliers(linears(model, runner.blocks)), tokens_NS, training)
        elif what == "sensitivity":
            runner.gather([PER_TOKEN], tokens_NS, gradient_checkpointing=checkpointing)
        else:
            runner.mean_loss(tokens_NS)
    return alive.peak


def sizes_of(model: PreTrainedModel) -> Sizes:
    return Sizes.of(model, family_of(model.config))


@pytest.mark.parametrize("build", [llama, opt])
@pytest.mark.parametrize(
    ("what", "trained", "checkpointing"),
    [
        ("gates", Trained.UNITS, False),
        ("gates", Trained.UNITS, True),
        ("sensitivity", Trained.UNITS, False),
        ("diagonals", Trained.MAPS, False),
    ],
)
def test_training_steps(build: Callable[[], PreTrainedModel], what: str, trained: Trained, checkpointing: bool) -> None:
    model = build()
    peak = measured(model, what, checkpointing=checkpointing)
    estimate = training_step(
        sizes_of(model), TOKENS, 4, trained, checkpointing=checkpointing, teacher=what == "diagonals"
    )
    assert 0.9 * peak <= estimate <= 1.25 * peak, f"{estimate:,} of {peak:,}"


def test_a_wide_ffn_a_large_vocabulary_a_batch() -> None:
    for model, batch in ((llama(intermediate_size=900), 1), (llama(vocab_size=4000), 1), (llama(), 3)):
        peak = measured(model, "gates", batch=batch)
        estimate = training_step(sizes_of(model), TOKENS, 4, Trained.UNITS, checkpointing=False)
        assert 0.9 * peak <= estimate <= 1.25 * peak, f"{estimate:,} of {peak:,}"


def test_a_pass_forward() -> None:
    model = llama(vocab_size=4000)
    peak = measured(model, "loss")
    assert 0.9 * peak <= forward_pass(sizes_of(model), TOKENS, 4) <= 1.25 * peak
