"""`optimum-cli grasprune export`: the main job."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from optimum.commands.base import CommandInfo

from .after_export import Written, add_result_options, beside_dense, check, finish, page_of
from .base import Subcommand, add_example, add_model_options, check_drawing, declare_late, is_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from optimum_grasprune.comparison.beside import BesideDense
    from optimum_grasprune.config import GRASPConfig, RunnerName, RunnerOptions
    from optimum_grasprune.estimate import Estimate, Forecast
    from optimum_grasprune.execution import Peers, RunState
    from optimum_grasprune.export.outputs import Source
    from optimum_grasprune.pruned import PrunedModel
    from optimum_grasprune.pruner import GRASPPruner


class ExportCommand(Subcommand):
    """Prune a model and save the smaller one."""

    COMMAND = CommandInfo(name="export", help="Prune a model and save the smaller dense checkpoint.")
    by_several = True
    _forecast: Forecast

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_example(
            parser, "optimum-cli grasprune export -m ./llama --keep-ratio 0.5 --dataset corpus.txt ./pruned-llama"
        )
        declare_late(parser, _declare)

    def execute(self) -> None:
        """Prune, save, summarise, and what was asked for after it; each ratio by itself where there are several."""
        from optimum_grasprune.config import by_recipe
        from optimum_grasprune.config.flags import given
        from optimum_grasprune.estimate import Forecast
        from optimum_grasprune.export.checkpoint import check_shard_size
        from optimum_grasprune.progress import note, watched
        from optimum_grasprune.pruner import GRASPPruner

        output = self.output_among("keep_ratio", "evaluate", is_value=_is_value)
        values = given(self.args, self.args.config_fields)
        ratios = values.pop("keep_ratio", [])
        config = by_recipe(self.args.recipe, **values, **({"keep_ratio": ratios[0]} if ratios else {}))
        check_shard_size(self.args.max_shard_size)
        check(self.args)
        pruner, several = GRASPPruner(config, self.peers), len(ratios) > 1 or self.args.nested
        folders = self._folders(pruner, ratios, Path(output)) if several else {config.keep_ratio: output}
        state = self._state(output)
        self._check_all_free(folders.values(), state)
        drawing = self._drawing(output, folders if several else {})
        if self.args.dry_run:
            self._show_needs(config, tuple(folders))
            return
        beside = self._beside(config)
        self._forecast = Forecast(note)
        with state.stoppable(), watched(self._forecast.see):
            if several:
                written = self._export_many(pruner, folders, state)
            else:
                written = [self._written(self._prune(pruner, state), output, self.args.push_to_hub, self.args.html)]
            state.remove()
        self._dismiss_others()
        measured = finish(written, beside, private=self.args.private, drawing=drawing)
        results = [done.to_dict(texts) for done, texts in zip(written, measured, strict=True)]
        if several:
            checkpoints = [{"output": done.folder, **of_it} for done, of_it in zip(written, results, strict=True)]
            self.write_result({"checkpoints": checkpoints})
        else:
            self.write_result(results[0])

    @property
    def _all(self) -> Peers:
        """All processes that do this."""
        from optimum_grasprune.execution import Peers

        return self.peers or Peers()

    @property
    def _is_first(self) -> bool:
        """Whether this is the process that writes; where several work together, the others do not."""
        return self._all.is_first

    def check_outputs(self, output: str | None = None) -> None:
        """See `Subcommand.check_outputs`; whoever writes nothing has nothing to check."""
        if self._is_first:
            super().check_outputs(output)

    def _dismiss_others(self) -> None:
        """What is left is for one process; the others end, once it has said that all is well."""
        if self.peers is None:
            return
        if self.peers.is_first:
            self.peers.watch.leave(0)
        else:
            self.peers.watch.wait()
            sys.exit(0)

    def _beside(self, config: GRASPConfig) -> BesideDense | None:
        read_as = self.source_options(self.args.model)
        return beside_dense(self.args, config, read_as) if self._is_first else None

    def _drawing(self, output: str, ratios: Iterable[float]) -> ModuleType | None:
        """What draws the pages, all of which can be written. ratios: where there are several."""
        if self.args.html is None or not self._is_first:
            return None
        pages = [str(page_of(self.args.html, ratio)) for ratio in ratios] or [self.args.html]
        return check_drawing({"html": pages}, self.sources(), output)

    def _written(self, pruned: PrunedModel, output: str, repository: str | None, page: str | None) -> Written:
        self._save(pruned, output)
        return Written.of(pruned, output, repository, page)

    def _state(self, output: str) -> RunState:
        from optimum_grasprune.config import StateOptions
        from optimum_grasprune.config.flags import given
        from optimum_grasprune.execution import RunState, SharedState
        from optimum_grasprune.export.staging import state_folder

        resume = StateOptions(**given(self.args, StateOptions.model_fields)).resume == "yes"
        if self.peers is None:
            return RunState(state_folder(output), resume=resume)
        return SharedState(state_folder(output), self.peers, resume=resume)

    def _check_all_free(self, folders: Iterable[str], state: RunState) -> None:
        """Refuse folders that are taken, but for those that this run wrote before it was stopped."""
        index = state.found()
        for folder in folders:
            if index is None or Path(folder).name not in index.outputs:
                self._check_free(folder)

    def _check_free(self, output: str) -> None:
        from optimum_grasprune.export.staging import check_output

        if not self._is_first:
            return
        self.check_outputs(output)
        check_output(output, overwrite=self.args.overwrite)

    def _save(self, pruned: PrunedModel, output: str) -> None:
        from optimum_grasprune.report import print_summary

        writes = self._all_told(pruned, writes=True)
        if not self._is_first:
            if writes:
                pruned.read_along(max_shard_size=self.args.max_shard_size)
            return
        with nullcontext() if self.peers is None else self.peers.watch.finishing():
            pruned.save(output, overwrite=self.args.overwrite, max_shard_size=self.args.max_shard_size)
        print_summary(pruned.record, f"{self.args.model} -> {output}")

    def _all_told(self, pruned: PrunedModel, *, writes: bool) -> bool:
        """Whether the first process writes a model of which every process has to read what is written.

        writes: whether it does, in that process.
        """
        return pruned.in_step and self._all.text_of_first(lambda: "writes" if writes else "") != ""

    def _prune(self, pruner: GRASPPruner, state: RunState) -> PrunedModel:
        from optimum_grasprune.export.checkpoint import read_plan

        saved = read_plan(self.args.plan) if self.args.plan else None
        model, tokenizer = self._loaded(pruner.config, (pruner.config.keep_ratio,))
        if saved is None:
            return pruner.prune(model, tokenizer, state=state, inplace=True)
        return pruner.replay(model, tokenizer, *saved, state=state, inplace=True)

    def _loaded(
        self, config: GRASPConfig, ratios: tuple[float, ...]
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from optimum_grasprune.execution.placed import placed_model
        from optimum_grasprune.export.base_card import CARD_NAME
        from optimum_grasprune.loading import load_tokenizer
        from optimum_grasprune.model_files import optional_file

        source, options = self.args.model, self.source_options(self.args.model)
        runner = self._fitting(config, ratios)
        optional_file(source, CARD_NAME)  # of the Hub: into the cache, where the card of the checkpoint looks for it
        device, peers = self._device(config), self._all
        model = placed_model(
            source, runner, self._runner, dtype=config.dtype, device=device, read_as=options, peers=peers
        )
        return model, load_tokenizer(source, **options)

    @property
    def _runner(self) -> RunnerOptions:
        from optimum_grasprune.config import RunnerOptions
        from optimum_grasprune.config.flags import given

        return RunnerOptions(**given(self.args, RunnerOptions.model_fields))

    def _device(self, config: GRASPConfig) -> str:
        """The option's value; of several processes that have a GPU each, this one's own."""
        import torch

        if self.peers is None or config.device != "auto" or not torch.cuda.is_available():
            return config.device
        return f"cuda:{torch.cuda.current_device()}"

    def _empty(self) -> PreTrainedModel:
        """The model without memory for its weights, which are of its sizes; none of them is read."""
        from optimum_grasprune.families import family_of
        from optimum_grasprune.loading import empty_model, load_config, require_unquantised, shapes_of
        from optimum_grasprune.model_files import check_stored

        source = self.args.model
        config = load_config(source, **self.source_options(source))
        require_unquantised(source, config)
        family_of(config)
        empty = empty_model(config)
        # Sizes that config.json has and the weights have not would need what nobody has.
        check_stored(source, shapes_of(empty), self.args.revision)
        return empty

    def _estimated(self, config: GRASPConfig, ratios: tuple[float, ...]) -> tuple[Estimate, str]:
        """What the run needs, beside what there is, by the runner that is chosen, and why; reads no weights."""
        import torch

        from optimum_grasprune.estimate import Job, Machine, estimated
        from optimum_grasprune.execution.placed import check_runner, computing_device
        from optimum_grasprune.loading import resolve_device

        empty, options, device, peers = self._empty(), self._runner, self._device(config), self._all
        check_runner(options, device, peers)
        target, replays = resolve_device(computing_device(options, device)), self.args.plan is not None
        job = Job.of(config, empty.config, device=target.type, ratios=ratios, replays=replays, processes=peers.count)
        here = torch.device(target.type) if options.max_memory else target  # several may be allowed
        spreads = options.runner in ("auto", "offloaded")
        for first in (True, False) if spreads else (True,):  # the other GPUs where the first one is not enough
            machine = Machine.here(here, self.args.output, first=first).of_each(peers)
            estimate, why = estimated(job, machine.allowing(options.max_memory), options.runner)
            if estimate.needs.runner == "whole":
                break
        # What is allowed is so for weights: it decides how a model is run, not whether.
        return replace(estimate, machine=machine), why

    def _fitting(self, config: GRASPConfig, ratios: tuple[float, ...]) -> RunnerName:
        """The runner; refuses what cannot fit, says what is needed where that is much, and what the run will do."""
        from optimum_grasprune.estimate import works_of
        from optimum_grasprune.progress import note

        estimate, why = self._estimated(config, ratios)
        self._require_fit(estimate)
        if why:
            note(f"runner: {estimate.needs.runner}, since {why}")
        if estimate.is_worth_a_line:
            note(estimate.line)
        self._forecast.expect(works_of(estimate.job))
        return estimate.needs.runner

    def _require_fit(self, estimate: Estimate) -> None:
        from optimum_grasprune.estimate import require_fit

        if not self.args.ignore_estimate:
            require_fit(estimate)

    def _show_needs(self, config: GRASPConfig, ratios: tuple[float, ...]) -> None:
        """What `--dry-run` prints; ends in an error where the run would."""
        from optimum_grasprune.report.tables import print_table

        estimate, _ = self._estimated(config, ratios)
        columns = ("", "needed", "free", "most for", "of which")
        print_table(f"{self.args.model}: what pruning it needs", columns, estimate.rows, estimate.footer)
        self.write_result(estimate.to_dict())
        self._require_fit(estimate)

    def _folders(self, pruner: GRASPPruner, ratios: Sequence[str], output: Path) -> dict[float, str]:
        """A folder for each of several ratios, largest first."""
        from optimum_grasprune.errors import OptionError
        from optimum_grasprune.ratios import at_ratios

        configs = at_ratios(pruner.config, ratios or [str(pruner.config.keep_ratio)], nested=self.args.nested)
        if self.args.plan:
            raise OptionError("keep_ratio", " ".join(ratios), "a plan is of one ratio, its own")
        return {config.keep_ratio: str(output / f"keep-{config.keep_ratio!r}") for config in configs}

    def _export_many(self, pruner: GRASPPruner, folders: Mapping[float, str], state: RunState) -> list[Written]:
        """A checkpoint a ratio in a folder of its own, each written when it is made: what is finished stays."""
        from optimum_grasprune.errors import GraspruneError

        loaded = self._loaded(pruner.config, tuple(folders))
        run = pruner.prune_many(*loaded, list(folders), nested=self.args.nested, state=state)
        written: list[Written] = []
        for ratio, folder in folders.items():
            try:
                repository = self.args.push_to_hub and f"{self.args.push_to_hub}-keep-{ratio!r}"
                page = page_of(self.args.html, ratio)
                written.append(self._written_among(run.prune(ratio), folder, repository, page, state))
            except GraspruneError as error:
                kept = ", ".join(done.folder for done in written) or "none"
                raise GraspruneError(f"at the keep ratio {ratio}: {error}; finished checkpoints: {kept}") from None
        return written

    def _written_among(
        self, pruned: PrunedModel, folder: str, repository: str | None, page: str | None, state: RunState
    ) -> Written:
        """One of several checkpoints, saved unless the run did so before it was stopped."""
        from optimum_grasprune.export.checkpoint import read_record
        from optimum_grasprune.report import print_summary

        name, record = Path(folder).name, pruned.record.to_dict()
        if not self._is_first:
            return self._written(pruned, folder, repository, page)
        if name in state.outputs and (before := read_record(folder)) is not None and before.to_dict() == record:
            self._all_told(pruned, writes=False)
            print_summary(pruned.record, f"{self.args.model} -> {folder}, written before")
            return Written.of(pruned, folder, repository, page)
        self._check_free(folder)
        state.announce(name)
        return self._written(pruned, folder, repository, page)

    def sources(self) -> list[Source]:
        """The model, the corpora and the plan."""
        from optimum_grasprune.export.outputs import corpora, local, models

        args = self.args
        return [
            *models("the model that is to be pruned", args.model),
            *local("the plan", args.plan),
            *corpora("the corpus", args.dataset),
            *corpora("the text that is watched", args.recover_watch),
            *corpora("the text that is measured on", *args.evaluate or ()),
        ]


def _is_value(option: str, text: str) -> bool:
    """Whether a text can only be a value of the list option, and not the folder OUTPUT."""
    return "=" in text if option == "evaluate" else is_number(text)


def _declare(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    from optimum_grasprune.config import RECIPES, GRASPConfig, RunnerOptions, StateOptions
    from optimum_grasprune.config.flags import (
        add_advanced_options,
        add_everyday_options,
        add_options,
        add_own_options,
    )

    required = parser.add_argument_group("Required arguments")
    required.add_argument("-m", "--model", required=True, help="model folder or Hugging Face name")
    required.add_argument(
        "output",
        metavar="OUTPUT",
        nargs="?",
        help="folder for the pruned checkpoint; of several ratios, for a folder of each, as in OUTPUT/keep-0.8",
    )
    optional = parser.add_argument_group("Optional arguments")
    optional.add_argument(
        "--recipe",
        metavar="|".join(RECIPES),
        default="default",
        help="what the other options default to (default: default)",
    )
    add_everyday_options(optional, several={"keep_ratio": "several make a checkpoint each, from one run"})
    optional.add_argument(
        "--nested",
        action="store_true",
        help="with several ratios: what goes at one of them is in no smaller one either",
    )
    optional.add_argument("--plan", metavar="PATH", help="replay a saved plan (a checkpoint or its grasp_config.json)")
    optional.add_argument("--overwrite", action="store_true", help="replace the pruned checkpoint in OUTPUT")
    add_options(optional, StateOptions)
    optional.add_argument(
        "--dry-run", action="store_true", help="print the memory and disk that it needs and what is free, and stop"
    )
    optional.add_argument(
        "--ignore-estimate", action="store_true", help="start also where there seems to be too little memory or disk"
    )
    add_model_options(optional)
    add_result_options(parser)
    own = add_own_options(parser, arguments)
    add_advanced_options(parser)
    add_options(parser.add_argument_group("Advanced: runner"), RunnerOptions)
    writing = parser.add_argument_group("Advanced: writing")
    writing.add_argument(
        "--max-shard-size", metavar="SIZE", default="5GB", help="largest weight file, as in 5GB (default: 5GB)"
    )
    parser.set_defaults(config_fields=(*GRASPConfig.model_fields, *own))
