"""Which tokens the model is calibrated on."""

from typing import Annotated

from pydantic import Field

from .base import Flag, Options


class CalibrationOptions(Options):
    """Which tokens the model is calibrated on."""

    dataset: Annotated[str, Flag("PATH|NAME", everyday=True)] = Field(
        default="sampled,builtin",
        description="calibration corpus: a text, jsonl, csv or parquet file (also .gz), a folder of them or one that "
        "`save_to_disk` wrote, a Hugging Face dataset as NAME or NAME:CONFIG, 'wikitext2', 'c4', "
        "'fineweb-edu', 'builtin' (the standard library's text) or 'sampled' (English); several with commas between "
        "them are mixed in equal parts",
    )
    dataset_split: Annotated[str | None, Flag("SPLIT", everyday=True)] = Field(
        default=None, description="split or slice of it, as in 'train', 'train[:90%]' or, for a file, '[:90%]'"
    )
    text_column: str = Field(
        default="text",
        description="column that holds the text, for everything but plain text files; conversations (lists of messages "
        "with role and content) go through the tokenizer's chat template",
    )
    bos: bool | None = Field(
        default=None,
        description="whether each sequence starts with a BOS token; by default as the tokenizer does by itself",
    )
    num_samples: Annotated[int | None, Flag("N", everyday=True)] = Field(
        default=None,
        ge=1,
        description="number of calibration sequences, drawn at random with the seed; by default 131,072 tokens in all",
    )
    seq_len: Annotated[int | None, Flag("N", everyday=True)] = Field(
        default=None,
        ge=2,
        description="tokens in each of them; by default 512, or half of what the model reads where that is less",
    )
    held_out: int | None = Field(
        default=None,
        ge=0,
        description="further sequences, from the end of each corpus, on whose loss candidates and compensations are "
        "chosen; 0 takes them unseen; by default the method's own number",
    )
