"""`GRASPConfig`: everything that decides what a pruned model looks like, validated and frozen.

The options stand in groups, one class each, so that a function asks for the group it needs; `GRASPConfig` is all of
them side by side. Each field says what it means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from .errors import OptionError
from .recovery import chain_names


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            option = ".".join(str(part) for part in first["loc"][:1]) or type(self).__name__
            raise OptionError(option, first["input"], first["msg"][:1].lower() + first["msg"][1:]) from None

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON types; `from_dict` restores them."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; OptionError on an unknown or invalid field."""
        return cls(**values)


class BudgetOptions(_Options):
    """How much may stay."""

    keep_ratio: float = Field(
        default=0.5, gt=0, le=1, description="share of the budgeted parameters that stays (the paper's ρ)"
    )
    budget: Literal["prunable", "total"] = Field(
        default="prunable",
        description="what the keep ratio is a share of: the prunable parameters (the paper's ρ: FFN channels and KV "
        "head groups) or all parameters of the model, embeddings, head and norms included",
    )
    kv_keep_ratio: float | None = Field(
        default=None, gt=0, le=1, description="a second cap: share of the KV cache per token that may stay"
    )
    min_ffn_channels: int = Field(default=1, ge=1, description="FFN channels that every layer keeps at least")
    min_kv_groups: int = Field(default=1, ge=1, description="KV head groups that every layer keeps at least")
    ffn_multiple_of: int = Field(default=1, ge=1, description="every layer's FFN width is a multiple of this")
    kv_multiple_of: int = Field(default=1, ge=1, description="every layer's number of KV heads is a multiple of this")
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="tensor-parallel size to serve with: every layer's widths are multiples of it"
    )


class CalibrationOptions(_Options):
    """Which tokens the model is calibrated on."""

    dataset: str = Field(
        default="builtin",
        description="calibration corpus: a text, jsonl, csv or parquet file (also .gz), a folder of them or one that "
        "`save_to_disk` wrote, a Hugging Face dataset as NAME or NAME:CONFIG, 'wikitext2', 'c4', 'builtin' (the "
        "standard library's text) or 'sampled' (English); several with commas between them are mixed in equal parts",
    )
    dataset_split: str | None = Field(
        default=None, description="split or slice of it, as in 'train', 'train[:90%]' or, for a file, '[:90%]'"
    )
    text_column: str = Field(
        default="text",
        description="column that holds the text, for everything but plain text files; conversations (lists of messages "
        "with role and content) go through the tokenizer's chat template",
    )
    bos: bool | None = Field(
        default=None,
        description="whether each sequence starts with a BOS token; None is what the tokenizer does by itself",
    )
    num_samples: int | None = Field(
        default=None,
        ge=1,
        description="number of calibration sequences, drawn at random with the seed; None is 131,072 tokens in all",
    )
    seq_len: int | None = Field(
        default=None,
        ge=2,
        description="tokens in each of them; None is 512, or half of what the model reads where that is less",
    )
    held_out: int | None = Field(
        default=None,
        ge=0,
        description="further sequences, from the end of each corpus, on whose loss candidates and compensations are "
        "chosen; 0 takes them unseen, None is the method's own number",
    )


class GateOptions(_Options):
    """How the gate scores are trained."""

    epochs: int = Field(default=1, ge=1, description="passes over the calibration sequences while gates are trained")
    batch_size: int = Field(default=1, ge=1, description="sequences in one training step")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="AdamW's learning rate for the gate scores; None grows with the cut, 2e-2 for a half",
    )
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="course of the learning rates of gates and scales; cosine falls to zero"
    )
    temperature: float = Field(default=1.5, gt=0, description="τ in p = sigmoid(s / τ)")
    start: Literal["zero", "fisher"] = Field(
        default="fisher", description="gate scores at the start: all equal, or by Fisher information per parameter"
    )
    start_rounds: int = Field(
        default=1,
        ge=1,
        description="rounds of Fisher information: each after the first measures the model that the one before leaves, "
        "while the budget shrinks; 1 measures the dense model only",
    )
    budget_warmup: float = Field(
        default=0.5, ge=0, lt=1, description="share of the training over which the budget shrinks from the whole model"
    )
    snapshots: int = Field(
        default=4, ge=1, description="moments of the training, the end among them, whose masks are candidates"
    )


class SearchOptions(_Options):
    """The search of per-layer widths on the true loss."""

    search_trials: int = Field(default=0, ge=0, description="widths that are tried; 0 leaves out the search")
    search_samples: int = Field(default=32, ge=1, description="calibration sequences that each of them is measured on")
    search_seconds: float | None = Field(
        default=None, gt=0, description="time limit of the search; the result then depends on the machine's speed"
    )


def _known_chain(value: Any) -> Any:
    names = ("auto", *chain_names())
    if value not in names:
        *others, last = map(repr, names)
        raise PydanticCustomError("chain", f"Input should be {', '.join(others)} or {last}")
    return value


class MethodOptions(_Options):
    """What is cut, and what makes up for it."""

    method: str = Field(default="grasprune", description="how the units to keep are chosen")
    pattern: Literal["units", "unstructured", "2:4", "4:8"] = Field(
        default="units",
        description="what is cut: whole units, which makes a smaller dense model, or single weights, anywhere or so "
        "that 2 of 4 (4 of 8) neighbours stay, which makes a model of the same size with zeros in it",
    )
    allocation: Literal["auto", "uniform", "global"] = Field(
        default="auto",
        description="whether every layer keeps the same share or units compete over the whole model; "
        "auto is the method's own",
    )
    compensation: Annotated[str, BeforeValidator(_known_chain)] = Field(
        default="auto",
        description="what makes up for the units that were cut: trained scales, least squares on the output "
        "projections, both, the mean of what is missing as a bias, or row energies; auto is the method's own",
    )
    statistic_samples: int = Field(
        default=128, ge=1, description="calibration sequences, at most, that statistics and least squares look at"
    )
    restoration: Literal["auto", "dense", "sequential"] = Field(
        default="auto",
        description="inputs that the least squares fit: what stays of the dense model's, or those that the layers "
        "already restored give; auto is the method's own",
    )
    least_squares: Literal["auto", "robust", "plain"] = Field(
        default="auto",
        description="how least squares take massive activations: robust leaves outlying tokens out and measures the "
        "ridge in median diagonals of the Gram matrix, plain takes all tokens and mean diagonals, as FASP does; auto "
        "is the method's own",
    )
    damping: float | None = Field(
        default=None,
        gt=0,
        description="ridge of the least squares towards the weights as they are, in mean diagonals of the Gram matrix "
        "(plain) or in median ones (robust); None is 0.01 for plain, and for robust the best of several on held-out "
        "data",
    )


class ScaleOptions(_Options):
    """How the scales of the kept units are calibrated."""

    scale_samples: int = Field(
        default=512, ge=1, description="calibration sequences, at most, that scales are trained on"
    )
    scale_epochs: int = Field(default=1, ge=1, description="passes over them while scales are trained")
    scale_learning_rate: float = Field(default=1e-2, gt=0, description="AdamW's learning rate for the scales")


class RunOptions(_Options):
    """Where and how precisely it all runs."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of every random choice")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="precision that the model is loaded, calibrated and saved in; auto is the checkpoint's own",
    )
    device: str = Field(default="auto", description="torch device; auto takes the first GPU, else the CPU")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations to save memory, about a third slower"
    )
    deterministic: bool = Field(
        default=False,
        description="only algorithms of torch's that give the same bits every time: slower and larger on a GPU, no "
        "change on a CPU",
    )


def _with_unit(value: Any, parse: ValidatorFunctionWrapHandler) -> ByteSize:
    error = PydanticCustomError("size", "should be a size like 24GiB, 80GB or 512MiB")
    try:
        size = parse(value)
    except ValidationError:
        raise error from None
    if size < 2**20:  # pydantic takes a number without a unit for bytes; nobody means 24 bytes
        raise error
    return size


Size = Annotated[ByteSize, WrapValidator(_with_unit)]
"""Bytes, written as in 24GiB or 80GB."""


class DeploymentOptions(_Options):
    """What a checkpoint is to be served on. Pruning needs none of it, so it is no part of `GRASPConfig`."""

    gpu_memory: Size = Field(description="memory of one GPU")
    context: int = Field(default=4096, ge=1, description="tokens in a sequence, prompt and answer")
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="share of the GPU memory that the engine may use, as given to vLLM"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that the model is split among")
    kv_cache_dtype: Literal["auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] = Field(
        default="auto", description="data type of the KV cache, as given to vLLM; auto is the model's"
    )
    overhead: Size | None = Field(
        default=None, description="memory for activations and runtime; None is an allowance for vLLM's defaults"
    )


class GRASPConfig(
    MethodOptions, BudgetOptions, CalibrationOptions, GateOptions, SearchOptions, ScaleOptions, RunOptions
):
    """The whole recipe of a pruned model. Immutable; unknown names and values out of range raise `OptionError`.

    >>> GRASPConfig(keep_ratio=0.8, dataset="wikitext2", epochs=1)
    """

    @classmethod
    def paper(cls, **overrides: Any) -> GRASPConfig:
        """The published recipe (arXiv 2604.19398, section 4.1) with corrected mistakes; `overrides` are set on top.

        WikiText-2 train, 512 sequences of 512 tokens, 4 epochs of gates and 1 of scales, batch 1, AdamW at a constant
        1e-2, bf16.
        """
        published: dict[str, Any] = {
            "method": "grasprune",
            "keep_ratio": 0.5,
            "budget": "prunable",
            "dataset": "wikitext2",
            "dataset_split": "train",
            "num_samples": 512,
            "seq_len": 512,
            "held_out": 0,
            "epochs": 4,
            "batch_size": 1,
            "learning_rate": 1e-2,
            "schedule": "constant",
            "temperature": 1.5,
            "start": "zero",
            "budget_warmup": 0.0,
            "snapshots": 1,
            "search_trials": 0,
            "compensation": "scales",
            "scale_samples": 512,
            "scale_epochs": 1,
            "scale_learning_rate": 1e-2,
            "dtype": "bfloat16",
        }
        return cls(**{**published, **overrides})

    @classmethod
    def quick(cls, **overrides: Any) -> GRASPConfig:
        """Fewer and shorter sequences, and the full cut from the first step: for a first look."""
        return cls(
            **{
                "num_samples": 192,
                "seq_len": 256,
                "statistic_samples": 64,
                "scale_samples": 128,
                "snapshots": 2,
                "budget_warmup": 0.0,
                **overrides,
            }
        )

    @classmethod
    def thorough(cls, **overrides: Any) -> GRASPConfig:
        """The default, then a long search of widths and twice the scale steps: for a model that will be served."""
        return cls(**{"search_trials": 256, "search_samples": 16, "scale_epochs": 2, **overrides})


RECIPES: dict[str, Callable[..., GRASPConfig]] = {
    "quick": GRASPConfig.quick,
    "default": GRASPConfig,
    "thorough": GRASPConfig.thorough,
    "paper": GRASPConfig.paper,
}
"""Named recipes that `--recipe` offers: each takes overrides by keyword and returns a `GRASPConfig`."""
