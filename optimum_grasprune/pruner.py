"""The pruner: one call per stage of the algorithm, in the paper's order.  (GRASPrune, arXiv 2604.19398)"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .budget import Budget
from .calibration import Corpus, corpus_in_memory, load_corpus, sample_sequences, tokenize
from .checkpoint import save_checkpoint
from .config import GRASPConfig
from .errors import GraspruneError, OptionError
from .families import Family, family_of, head_dimension
from .gating import train_scales
from .loading import count_parameters
from .methods import Task, get_method
from .plan import PruningPlan
from .report import model_card
from .surgery import build_pruned_model
from .units import UnitInventory

RECORD_VERSION = 1
_RECORDED_PACKAGES = ("optimum-grasprune", "torch", "transformers")


@dataclass(frozen=True)
class Calibration:
    """The corpus and the sequences drawn from it, shape (N, S)."""

    corpus: Corpus
    tokens_NS: Tensor


class GRASPPruner:
    """Prunes a model by a recipe.

    >>> pruner = GRASPPruner(GRASPConfig(keep_ratio=0.8))
    >>> smaller = pruner.prune_model(model, tokenizer)
    >>> pruner.save("pruned-llama")

    After `prune_model`: `model`, the pruned model; `plan`, what was kept; `record`, the content of `grasp_config.json`.
    """

    def __init__(self, config: GRASPConfig | None = None) -> None:
        self.config = config or GRASPConfig()
        self.method = get_method(self.config.method)
        self.model: PreTrainedModel | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.plan: PruningPlan | None = None
        self.record: dict[str, Any] = {}

    def prune_model(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] | None = None
    ) -> PreTrainedModel:
        """A smaller dense model; the given one stays as it was, and shares its embeddings, head and norms with it.

        texts: calibration texts, in place of the corpus that the configuration names.
        Raises UnsupportedFamilyError, BudgetError, OptionError or DataError before any training starts.
        """
        family = family_of(model.config)
        inventory = family.inventory(model)
        budget = Budget.resolve(self.config, inventory, count_parameters(model))
        calibration = self._calibration(model, tokenizer, texts)
        tokens_NS = torch.empty(0, 0, dtype=torch.int64) if calibration is None else calibration.tokens_NS

        mask = self.method.select(Task(model, family, inventory, budget, tokens_NS, self.config))
        plan = PruningPlan.from_mask(mask)
        if self.config.scales:
            plan = self._with_scales(model, family, plan, tokens_NS)
        return self._finish(model, tokenizer, family, plan, budget, calibration)

    def replay(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        plan: PruningPlan,
        origin: Mapping[str, Any] | None = None,
    ) -> PreTrainedModel:
        """The pruned model that a saved plan describes, without calibration; same base model, same bytes.

        origin: the record that the plan was read from; what it says of recipe, calibration and budget is carried over.
        With `scales=False` in the configuration the plan's scales are left out. Raises PlanError when the plan is for
        a model of other shapes.
        """
        family = family_of(model.config)
        plan = plan if self.config.scales else plan.without_scales()
        pruned = self._finish(model, tokenizer, family, plan, None, None)
        if origin is not None:
            self.record["recipe"] = {**origin["recipe"], "scales": origin["recipe"]["scales"] and self.config.scales}
            self.record["calibration"] = origin["calibration"]
            self.record["budget"]["asked"] = origin["budget"]["asked"]
        return pruned

    def save(self, output: str | os.PathLike[str], *, overwrite: bool = False, max_shard_size: str = "5GB") -> None:
        """Write the pruned model as a checkpoint folder; CheckpointError when it cannot be written."""
        if self.model is None:
            raise GraspruneError("there is nothing to save: call prune_model first")
        save_checkpoint(
            self.model,
            self.tokenizer,
            self.record,
            output,
            card=model_card(self.record),
            overwrite=overwrite,
            max_shard_size=max_shard_size,
        )

    def _with_scales(self, model: PreTrainedModel, family: Family, plan: PruningPlan, tokens_NS: Tensor) -> PruningPlan:
        # The sliced model ends with this call: it and the final one never stand in memory together.
        sliced = build_pruned_model(model, plan, family)
        return plan.with_scales(train_scales(sliced, family, family.inventory(sliced), tokens_NS, self.config))

    def _calibration(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] | None
    ) -> Calibration | None:
        if not (self.method.needs_calibration or self.config.scales):
            return None
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and self.config.seq_len > longest:
            raise OptionError("seq_len", self.config.seq_len, f"the model reads at most {longest} tokens")
        if texts is None:
            corpus = load_corpus(self.config.dataset, self.config.dataset_split, self.config.text_column)
        else:
            corpus = corpus_in_memory(texts)
        return Calibration(corpus, sample_sequences(tokenize(corpus, tokenizer), self.config, self.config.seed))

    def _finish(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        family: Family,
        plan: PruningPlan,
        budget: Budget | None,
        calibration: Calibration | None,
    ) -> PreTrainedModel:
        self.model, self.tokenizer, self.plan = build_pruned_model(model, plan, family), tokenizer, plan
        self.record = {
            "format": RECORD_VERSION,
            "recipe": self.config.to_dict(),
            "base_model": describe_model(model),
            "calibration": None
            if calibration is None
            else {**calibration.corpus.describe(), "sequences": list(calibration.tokens_NS.shape)},
            "budget": _budget_record(family, model, self.model, budget),
            "versions": {name: version(name) for name in _RECORDED_PACKAGES} | {"python": platform.python_version()},
            "plan": plan.to_dict(),
        }
        return self.model


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """What identifies a base model: its name and its shapes."""
    config = model.config
    return {
        "name": config.name_or_path,
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "head_dim": head_dimension(config),
        "vocab_size": config.vocab_size,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _budget_record(
    family: Family, dense: PreTrainedModel, pruned: PreTrainedModel, budget: Budget | None
) -> dict[str, Any]:
    before, after = family.inventory(dense), family.inventory(pruned)
    return {
        "asked": None if budget is None else {"cost": budget.cost, "kv_width": budget.kv_width},
        "dense": _totals(dense, before),
        "pruned": _totals(pruned, after),
        "kept": {
            "prunable": after.total_cost / before.total_cost,
            "parameters": count_parameters(pruned) / count_parameters(dense),
            "kv_cache": after.total_kv_width / before.total_kv_width,
        },
    }


def _totals(model: PreTrainedModel, inventory: UnitInventory) -> dict[str, int]:
    return {
        "parameters": count_parameters(model),
        "prunable": inventory.total_cost,
        "kv_elements_per_token": inventory.total_kv_width,
    }
