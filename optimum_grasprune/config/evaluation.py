"""What perplexity is measured on."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Flag, Options


class EvaluationOptions(Options):
    """What perplexity is measured on, and how. Pruning needs none of it, so it is no part of `GRASPConfig`."""

    dataset: Annotated[str | None, Flag("PATH|NAME")] = Field(
        default=None,
        description="evaluation corpus, as the calibration corpus of export; by default builtin's held-out part",
    )
    dataset_split: Annotated[str | None, Flag("SPLIT")] = Field(
        default=None, description="split or slice of it: test, or [90%:] of a file"
    )
    text_column: str = Field(default="text", description="column that holds the text, where it is a table")
    seq_len: int | None = Field(
        default=None, ge=2, description="tokens in a window; by default 512, or as many as all models read"
    )
    num_samples: int | None = Field(
        default=None, ge=1, description="windows to score, from the start; by default all of them"
    )
    batch_size: int = Field(default=1, ge=1, description="windows scored at once")
    bos: bool | None = Field(
        default=None, description="start each window with a BOS token, or none; by default as the tokenizer does"
    )
    by_position: bool = Field(
        default=False,
        description="also by how many tokens a prediction can look back on; windows then have as many tokens as all "
        "models read, unless --seq-len says how many",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="precision that models are loaded and measured in; auto is each checkpoint's own"
    )
    device: Annotated[str, Flag("DEVICE")] = Field(
        default="auto", description="torch device, as in cpu or cuda:0; auto takes the first GPU, else the CPU"
    )
    runner: Literal["whole", "streamed"] = Field(
        default="whole",
        description="whole: a model is in memory; streamed: one of its layers is, read from its files, for perplexity",
    )
