"""A checkpoint of a real size with random weights, to time what no weights are at hand for.

    python examples/make_dummy.py --shape tinyllama-1.1b dense-1.1b
    python examples/make_dummy.py --shape llama-2-7b dense-7b
    python examples/make_dummy.py --shape llama-2-7b --keep-ratio 0.5 --ffn-multiple-of 64 pruned-7b
    python examples/make_dummy.py --shape llama-2-7b --keep-ratio 0.5 --plan ./pruned-smollm2 pruned-7b
    python examples/make_dummy.py --shape llama-2-7b --keep-ratio 0.5 --uniform control-7b

Right for speed and memory, meaningless for quality. The widths come from a plan of any model, stretched to this one's
depth and budget, or from a built-in profile. `--config-only` writes no weights, for `vllm serve --load-format dummy`.
"""

from __future__ import annotations

import argparse
import sys

from optimum_grasprune import Budget, PruningPlan
from optimum_grasprune.config import BudgetOptions
from optimum_grasprune.config.flags import add_options, given
from optimum_grasprune.dummy import (
    SHAPES,
    Dummy,
    chosen_mask,
    is_replaceable,
    profile,
    shape_config,
    shares_of,
    uniform_mask,
    write_dummy,
)
from optimum_grasprune.errors import GraspruneError, OptionError
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.export.outputs import check_apart, local
from optimum_grasprune.export.staging import check_output
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import count_parameters, empty_model

DTYPES = ("bfloat16", "float16", "float32")
BUILT_IN = "a built-in profile"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options; those of the budget are the ones of `export`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", help="folder for the checkpoint")
    parser.add_argument("--shape", required=True, metavar="NAME", help=f"one of {', '.join(SHAPES)}")
    budget = parser.add_argument_group("Budget; without --keep-ratio the dense model is written")
    add_options(budget, BudgetOptions)
    widths = parser.add_argument_group("Widths")
    widths.add_argument("--plan", metavar="PATH", help="checkpoint, or its grasp_config.json, whose widths to take")
    widths.add_argument("--uniform", action="store_true", help="the same widths in all layers, as a control")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--config-only", action="store_true", help="write no weights")
    parser.add_argument("--max-shard-size", metavar="SIZE", default="2GB", help="largest weight file, as in 2GB")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint in OUTPUT")
    return parser.parse_args(arguments)


def make(args: argparse.Namespace) -> Dummy:
    """The checkpoint that the options describe. Raises GraspruneError."""
    config = shape_config(args.shape, args.dtype)
    asked = given(args, BudgetOptions.model_fields)
    if "keep_ratio" not in asked:
        for option in (*asked, "plan", "uniform"):
            if value := getattr(args, option):
                raise OptionError(option, value, "is of use only with --keep-ratio")
        return Dummy(args.shape, config)
    model = empty_model(config)
    inventory = family_of(config).inventory(model)
    budget = Budget.resolve(BudgetOptions(**asked), inventory, count_parameters(model))
    layers = config.num_hidden_layers
    shares = shares_of(read_plan(args.plan)[0], layers) if args.plan else profile(layers)
    mask, widths = chosen_mask(shares, inventory, budget), f"those of {args.plan}" if args.plan else BUILT_IN
    if args.uniform:
        mask, widths = uniform_mask(mask, budget), f"the same in all layers, in all as many as by {widths}"
    return Dummy(args.shape, config, PruningPlan.from_mask(mask), budget, widths)


def main() -> None:
    """Check everything, then write."""
    args = parse(sys.argv[1:])
    try:
        check_apart(args.output, local("the plan", args.plan))
        check_output(args.output, overwrite=args.overwrite, replaceable=is_replaceable)
        write_dummy(
            make(args),
            args.output,
            seed=args.seed,
            config_only=args.config_only,
            overwrite=args.overwrite,
            max_shard_size=args.max_shard_size,
        )
    except OptionError as error:
        _fail(error.flag_line)
    except GraspruneError as error:
        _fail(str(error))


def _fail(line: str) -> None:
    print(f"make_dummy: error: {line}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
