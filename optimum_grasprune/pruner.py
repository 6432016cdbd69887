"""The pruner: one call per stage of the algorithm, in the paper's order.  (GRASPrune, arXiv 2604.19398)"""

from __future__ import annotations

import math
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .admission import check_model
from .checkpoint import save_checkpoint
from .config import GRASPConfig
from .corpora import FEW_HELD_OUT, TokenizedCorpus, corpus_in_memory, load_corpus, tokenize
from .errors import GraspruneError, GraspruneWarning, OptionError, PlanError
from .execution import WholeModel
from .families import Family, family_of, head_dimension
from .generation import generation_settings, set_generation
from .loading import calibration_length, count_parameters
from .methods import get_method
from .numerics import deterministic_algorithms, on_plain_torch
from .outputs import Source, corpora, local, models
from .problem import Problem
from .record import RECORD_FORMAT, mixed_as_one_text
from .recovery import stage_names, stages_in
from .recovery.chain import Chain, as_recorded, chains_without_data, held_by
from .recovery.reference import Reference, Trial
from .report import model_card, public_name
from .selection import Selected, choose
from .units import Budget, ElementMask, PruningPlan, UnitInventory, UnitMask, exact_ratio

NO_TOKENS_NS = torch.empty(0, 0, dtype=torch.int64, device="cpu")
_RECORDED_PACKAGES = ("optimum-grasprune", "torch", "transformers")


@dataclass(frozen=True)
class Calibration:
    """A corpus and the sequences drawn from it.

    tokens_NS: what methods and compensations learn from, shape (N, S).  held_out_NS: what choices are judged on; none
    where nothing is to be chosen.
    """

    tokenized: TokenizedCorpus
    tokens_NS: Tensor
    held_out_NS: Tensor

    def describe(self) -> dict[str, Any]:
        """What a checkpoint records of it."""
        return {
            **self.tokenized.corpus.describe(),
            "first_tokens": list(self.tokenized.first),
            "sequences": list(self.tokens_NS.shape),
            "held_out_sequences": len(self.held_out_NS),
        }


class GRASPPruner:
    """Prunes a model by a recipe.

    >>> pruner = GRASPPruner(GRASPConfig(keep_ratio=0.8))
    >>> smaller = pruner.prune_model(model, tokenizer)
    >>> pruner.save("pruned-llama")

    After `prune_model`: `model`, the pruned model; `plan`, what was kept (None where single weights were cut);
    `record`, the content of `grasp_config.json`; `scores`, what the method scored units with, and `candidates`, the
    choices of units that it came to, if it did.
    """

    def __init__(self, config: GRASPConfig | None = None) -> None:
        self.config = config or GRASPConfig()
        self.method = get_method(self.config.method)
        self.method.check(self.config)
        self.model: PreTrainedModel | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.plan: PruningPlan | None = None
        self.scores: Tensor | None = None
        self.candidates: Mapping[str, UnitMask] | None = None
        self.record: dict[str, Any] = {}
        self._generation = GenerationConfig()
        self._sources: list[Source] = []

    @on_plain_torch
    def prune_model(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[Any] | TokenizedCorpus | None = None,
        scores: Tensor | None = None,
        candidates: Mapping[str, UnitMask] | None = None,
    ) -> PreTrainedModel:
        """A smaller dense model; the given one stays as it was, and shares its embeddings, head and norms with it.

        With another `pattern` than "units" it is a model of the same class and size, with zeros in it.

        texts: calibration texts, or conversations (lists of messages with `role` and `content`), in place of the corpus
            that the configuration names; a corpus that is tokenized already is taken as it is.
        scores: `scores` of an earlier run of the same method on the same model and corpus, which need not be computed
            again: they fit any budget.
        candidates: `candidates` of an earlier run that differs in nothing but what makes up for the cut.
        Raises ModelError, UnsupportedFamilyError, BudgetError, OptionError or DataError before any training starts.
        """
        check_model(model)
        family = family_of(model.config)
        self._generation = generation_settings(model)
        self._sources = self._read(model, None if texts is None else "")
        runner = WholeModel(model)
        inventory = runner.inventory
        whole_units = self.config.pattern == "units"
        # Where single weights are cut, every unit stays.
        budget = Budget(inventory.total_cost)
        if whole_units:
            added = self.method.chain_for(self.config).added_parameters(model, family)
            budget = Budget.resolve(self.config, inventory, count_parameters(model), added)
        calibration = self._calibration(model, tokenizer, texts, self.config)
        tokens_NS = held_out_NS = NO_TOKENS_NS
        if calibration is not None:
            tokens_NS, held_out_NS = calibration.tokens_NS, calibration.held_out_NS
        task = self.method.problem(runner, budget, tokens_NS, held_out_NS, self.config)

        if not whole_units:
            return self._finish_elements(task, tokenizer, calibration)
        self.scores = self.method.score(task) if scores is None else scores
        self.candidates = self.method.candidates(task, self.scores) if candidates is None else candidates
        selected = choose(self.candidates, self.method.chain_for(self.config), task)
        return self._finish(model, tokenizer, family, selected, budget, calibration)

    @on_plain_torch
    def replay(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        plan: PruningPlan,
        origin: Mapping[str, Any] | None = None,
    ) -> PreTrainedModel:
        """The pruned model that a saved plan describes; same base model, same bytes.

        origin: the record that the plan was read from. What it says of recipe, calibration and budget is carried over;
        weights that were refitted to calibration data are refitted to the same data, which must still be there.
        With another `compensation` than "auto" in the configuration, that one is applied instead. Raises ModelError for
        a model that cannot be pruned, and PlanError when the plan is for one of other shapes, or its corpus has
        changed.
        """
        if self.config.pattern != "units":
            raise OptionError("pattern", self.config.pattern, "a plan holds whole units")
        check_model(model)
        family = family_of(model.config)
        self._generation = generation_settings(model)
        dataset = None if origin is None else origin["recipe"].get("dataset")
        self._sources = self._read(model, dataset) + local("the plan", plan.source)
        recipe, tokens_NS = self.config, NO_TOKENS_NS
        chain = self._replayed_chain(plan, origin, recipe)
        if origin is not None and not chain.in_plan:
            recipe = GRASPConfig.from_dict(origin["recipe"])
            chain = self._replayed_chain(plan, origin, recipe)
        if chain.looks_at_data_again:
            tokens_NS = self._recorded_tokens(model, tokenizer, recipe, origin)
        reference = Reference.on(WholeModel(model), tokens_NS, recipe.statistic_samples, chain.statistics)
        settings = chain.recorded_settings(origin)
        with deterministic_algorithms(recipe.deterministic):
            pruned, kept = chain.replayed(reference, Trial(plan, settings))
        self._finish(model, tokenizer, family, Selected(kept, pruned, chain.names, settings), None, None)
        if origin is not None:
            applied = {} if self.config.compensation == "auto" else {"compensation": self.config.compensation}
            self.record["recipe"] = {**origin["recipe"], **applied}
            self.record["calibration"] = origin["calibration"]
            self.record["budget"]["asked"] = origin["budget"]["asked"]
            self.record["choice"] = origin["choice"]
        return pruned

    def save(
        self, output: str | os.PathLike[str], *, overwrite: bool = False, max_shard_size: int | str = "5GB"
    ) -> None:
        """Write the pruned model as a checkpoint folder.

        overwrite: replace the files of an older checkpoint in it; all others stay.
        Raises CheckpointError when it cannot be written, or is, contains or lies in what the model was made from.
        """
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
            sources=self._sources,
        )

    def _read(self, model: PreTrainedModel, dataset: str | None) -> list[Source]:
        """What lies on this machine of the model and the corpus, which is the configuration's unless given."""
        corpus = self.config.dataset if dataset is None else dataset
        return [*models("the model that was pruned", model.config.name_or_path), *corpora("the corpus", corpus)]

    def _replayed_chain(self, plan: PruningPlan, origin: Mapping[str, Any] | None, recipe: GRASPConfig) -> Chain:
        """What made up for the cut, as the recipe has it; what the plan should hold and does not is left out."""
        if self.config.compensation != "auto":
            names = stages_in(self.config.compensation)
        else:
            names = held_by(plan) if origin is None else tuple(origin["compensation"])
        if unknown := [name for name in names if name not in stage_names()]:
            known = ", ".join(stage_names())
            raise PlanError(
                f"the plan was made with the stage {unknown[0]}, which does not exist here; there are {known}"
            )
        chain = Chain.of(names, get_method(recipe.method).resolved(recipe))
        return Chain(tuple(stage for stage in chain.stages if not stage.in_plan or stage.held_by(plan)))

    def _recorded_tokens(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        recipe: GRASPConfig,
        origin: Mapping[str, Any] | None,
    ) -> Tensor:
        """The sequences that weights were refitted to, drawn again by a recorded recipe, shape (N, S)."""
        calibration = self._calibration(model, tokenizer, None, recipe)
        if calibration is None:
            raise PlanError("the plan's recipe has no calibration data to refit weights to")
        if origin is not None and mixed_as_one_text(origin):
            raise PlanError(
                f"the plan's weights were refitted to {recipe.dataset} mixed as version 0.1 did it, which cannot be "
                f"drawn again; replay it with another compensation: {' or '.join(chains_without_data())}"
            )
        corpus = calibration.tokenized.corpus
        if origin is not None and (origin["calibration"] or {}).get("sha256") != corpus.sha256:
            raise PlanError(f"the corpus {recipe.dataset} is not the one that the plan was calibrated on")
        return calibration.tokens_NS

    def _calibration(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        texts: Sequence[Any] | TokenizedCorpus | None,
        config: GRASPConfig,
    ) -> Calibration | None:
        method = get_method(config.method)
        if not method.looks_at_data(config):
            return None
        length = calibration_length(model.config, config.seq_len)
        if isinstance(texts, TokenizedCorpus):
            return drawn(texts, config, length)
        if texts is None:
            corpus = load_corpus(config.dataset, config.dataset_split, config.text_column)
        else:
            corpus = corpus_in_memory(texts)
        if tokenizer is None:
            raise GraspruneError("a tokenizer is needed to calibrate")
        return drawn(tokenize(corpus, tokenizer, model.config.vocab_size, bos=config.bos), config, length)

    def _finish(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        family: Family,
        selected: Selected,
        budget: Budget | None,
        calibration: Calibration | None,
    ) -> PreTrainedModel:
        self.model, self.tokenizer, self.plan = selected.model, tokenizer, selected.plan
        set_generation(self.model, self._generation)
        self.record = {
            **self._provenance(model, calibration),
            "budget": budget_record(family, model, self.model, budget),
            "compensation": list(selected.stages),
            **as_recorded(selected.settings),
            "choice": [judgement.to_dict() for judgement in selected.judgements],
            "plan": selected.plan.to_dict(),
        }
        return self.model

    def _finish_elements(
        self, task: Problem, tokenizer: PreTrainedTokenizerBase | None, calibration: Calibration | None
    ) -> PreTrainedModel:
        mask = self.method.select_elements(task)
        chain = self.method.chain_for(self.config)
        trial = chain.trials(mask)[0]
        (sparse,) = chain.refitted(Reference.of(task), [trial])
        self.model, self.tokenizer, self.plan = sparse, tokenizer, None
        set_generation(sparse, self._generation)
        self.scores = self.candidates = None
        self.record = {
            **self._provenance(task.model, calibration),
            "budget": _element_budget_record(task, mask),
            "compensation": list(chain.names),
            **as_recorded(trial.settings),
            "choice": [],
            "plan": None,
        }
        return sparse

    def _provenance(self, model: PreTrainedModel, calibration: Calibration | None) -> dict[str, Any]:
        recipe = self.config.to_dict()
        if calibration is not None:  # what it came to, so that a replay draws the same sequences
            recipe["num_samples"], recipe["seq_len"] = calibration.tokens_NS.shape
        return {
            "format": RECORD_FORMAT,
            "recipe": recipe,
            "base_model": describe_model(model),
            "calibration": None if calibration is None else calibration.describe(),
            "versions": {name: version(name) for name in _RECORDED_PACKAGES} | {"python": platform.python_version()},
        }


def drawn(tokenized: TokenizedCorpus, config: GRASPConfig, length: int) -> Calibration:
    """The calibration sequences of a recipe, of `length` tokens, and what it holds out.

    Raises DataError or OptionError when the corpus is too short. Warns where little is held out, unless asked for.
    """
    method = get_method(config.method)
    rest, held_out_NS = tokenized.hold_out(method.held_out_for(config), length)
    sequences_NS = rest.sample(config, length, config.seed)
    if config.held_out is None and method.held_out and len(held_out_NS) < FEW_HELD_OUT:
        warnings.warn(
            f"the corpus {tokenized.corpus.source} is so short that only {len(held_out_NS)} of {method.held_out} "
            f"sequences of {length} tokens could be held out: between candidates, and between what makes up for the "
            "cut, they decide little better than chance; use more text",
            GraspruneWarning,
            stacklevel=2,
        )
    return Calibration(tokenized, sequences_NS, held_out_NS)


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """What identifies a base model: its name and its shapes."""
    config = model.config
    return {
        "name": public_name(config.name_or_path or ""),
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "head_dim": head_dimension(config),
        "vocab_size": config.vocab_size,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def budget_record(
    family: Family, dense: PreTrainedModel, pruned: PreTrainedModel, budget: Budget | None
) -> dict[str, Any]:
    """Parameters and KV width of both models and the shares kept. budget: what was asked; None if it isn't known."""
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


def _element_budget_record(task: Problem, mask: ElementMask) -> dict[str, Any]:
    """Parameters of the pruned model are those that were not cut; it stores the others as zeros."""
    parameters, kv_width = count_parameters(task.model), task.inventory.total_kv_width
    left = parameters - (mask.total - mask.kept_count)
    return {
        "asked": {"cost": math.floor(exact_ratio(task.config.keep_ratio) * mask.total), "kv_width": None},
        "dense": {"parameters": parameters, "prunable": mask.total, "kv_elements_per_token": kv_width},
        "pruned": {"parameters": left, "prunable": mask.kept_count, "kv_elements_per_token": kv_width},
        "kept": {"prunable": mask.kept_count / mask.total, "parameters": left / parameters, "kv_cache": 1.0},
    }


def _totals(model: PreTrainedModel, inventory: UnitInventory) -> dict[str, int]:
    return {
        "parameters": count_parameters(model),
        "prunable": inventory.total_cost,
        "kv_elements_per_token": inventory.total_kv_width,
    }
