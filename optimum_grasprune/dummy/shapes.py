"""The shapes of well-known models, and a tokenizer of their vocabulary's size. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..errors import OptionError

_LLAMA_3_ROPE: dict[str, str | float | int] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

_NO_WINDOW = {"sliding_window": None}


@dataclass(frozen=True)
class KnownShape:
    """The sizes of a model. ffn: channels.  longest: tokens that it reads.  tied: embedding and head are one matrix.

    head_dim: elements of a head; None for hidden ÷ heads.  deviation: of the random weights.
    model_type: whose configuration it is.  others: what else stands in it.
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    longest: int
    tied: bool = False
    head_dim: int | None = None
    deviation: float = 0.02
    rope: Mapping[str, str | float | int] | None = None
    model_type: str = "llama"
    others: Mapping[str, int | None] = field(default_factory=dict)


SHAPES: dict[str, KnownShape] = {
    "tiny": KnownShape(256, 704, 6, 8, 4, 2048, 2048, head_dim=32, deviation=0.06),
    "smollm2-135m": KnownShape(576, 1536, 30, 9, 3, 49152, 8192, tied=True),
    "tinyllama-1.1b": KnownShape(2048, 5632, 22, 32, 4, 32000, 2048),
    "open-llama-3b": KnownShape(3200, 8640, 26, 32, 32, 32000, 2048),
    "llama-2-7b": KnownShape(4096, 11008, 32, 32, 32, 32000, 4096),
    "llama-2-13b": KnownShape(5120, 13824, 40, 40, 40, 32000, 4096),
    "llama-30b": KnownShape(6656, 17920, 60, 52, 52, 32000, 2048),
    "llama-2-70b": KnownShape(8192, 28672, 80, 64, 8, 32000, 4096),
    "llama-3.1-8b": KnownShape(4096, 14336, 32, 32, 8, 128256, 131072, rope=_LLAMA_3_ROPE),
    "llama-3.1-70b": KnownShape(8192, 28672, 80, 64, 8, 128256, 131072, rope=_LLAMA_3_ROPE),
    "mistral-7b": KnownShape(4096, 14336, 32, 32, 8, 32768, 32768, model_type="mistral", others=_NO_WINDOW),
    "qwen2.5-7b": KnownShape(3584, 18944, 28, 28, 4, 152064, 32768, model_type="qwen2"),
    "qwen3-8b": KnownShape(4096, 12288, 36, 32, 8, 151936, 40960, head_dim=128, model_type="qwen3"),
    "phi-3-mini": KnownShape(3072, 8192, 32, 32, 32, 32064, 4096, model_type="phi3", others={"sliding_window": 2047}),
    "phi-4": KnownShape(5120, 17920, 40, 40, 10, 100352, 16384, model_type="phi3"),
    "gemma-3-270m": KnownShape(
        640, 2048, 18, 4, 1, 262144, 32768, True, 256, model_type="gemma3_text", others={"sliding_window": 512}
    ),
    "gemma-3-1b": KnownShape(
        1152, 6912, 26, 4, 1, 262144, 32768, True, 256, model_type="gemma3_text", others={"sliding_window": 512}
    ),
}
"""Shapes by name; `tiny`, which is nobody's, is there to try things on a CPU."""

_SPECIAL = ("<unk>", "<s>", "</s>")


def shape_config(name: str, dtype: str = "bfloat16") -> PreTrainedConfig:
    """The configuration of a shape; OptionError, with those that there are, for an unknown one."""
    if name not in SHAPES:
        raise OptionError("shape", name, f"no such shape; there are {', '.join(SHAPES)}")
    shape = SHAPES[name]
    values: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.longest,
        "tie_word_embeddings": shape.tied,
        "rms_norm_eps": 1e-5,
        "head_dim": shape.head_dim,
        "initializer_range": shape.deviation,
        "rope_parameters": None if shape.rope is None else dict(shape.rope),
        "dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        **shape.others,
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[shape.model_type]],
    }
    absent = {"head_dim", "rope_parameters"}  # where they are None, the configuration has its own
    given = {key: value for key, value in values.items() if value is not None or key not in absent}
    return CONFIG_MAPPING[shape.model_type](**given)


def dummy_tokenizer(config: PreTrainedConfig) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words w3, w4, … between spaces, as many as the vocabulary has.

    Decoding any tokens and encoding the text gives the same tokens, so benchmarks that draw random tokens and send
    them as text get exactly the lengths that they ask for. Any other word is unknown.
    """
    words = [*_SPECIAL, *(f"w{index}" for index in range(len(_SPECIAL), config.vocab_size))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
