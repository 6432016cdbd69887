"""The shapes of well-known models, and a tokenizer of their vocabulary's size. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ..errors import OptionError

_LLAMA_3_ROPE: dict[str, str | float | int] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class KnownShape:
    """The sizes of a model. ffn: channels.  longest: tokens that it reads.  tied: embedding and head are one matrix.

    head_dim: elements of a head; None for hidden ÷ heads.  deviation: of the random weights.
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


SHAPES: dict[str, KnownShape] = {
    "tiny": KnownShape(256, 704, 6, 8, 4, 2048, 2048, head_dim=32, deviation=0.06),
    "smollm2-135m": KnownShape(576, 1536, 30, 9, 3, 49152, 8192, tied=True),
    "llama-2-7b": KnownShape(4096, 11008, 32, 32, 32, 32000, 4096),
    "llama-2-13b": KnownShape(5120, 13824, 40, 40, 40, 32000, 4096),
    "llama-2-70b": KnownShape(8192, 28672, 80, 64, 8, 32000, 4096),
    "llama-3.1-8b": KnownShape(4096, 14336, 32, 32, 8, 128256, 131072, rope=_LLAMA_3_ROPE),
    "llama-3.1-70b": KnownShape(8192, 28672, 80, 64, 8, 128256, 131072, rope=_LLAMA_3_ROPE),
}
"""Shapes by name; `tiny`, which is nobody's, is there to try things on a CPU."""

_SPECIAL = ("<unk>", "<s>", "</s>")


def shape_config(name: str, dtype: str = "bfloat16") -> LlamaConfig:
    """The configuration of a shape; OptionError, with those that there are, for an unknown one."""
    if name not in SHAPES:
        raise OptionError("shape", name, f"no such shape; there are {', '.join(SHAPES)}")
    shape = SHAPES[name]
    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.longest,
        tie_word_embeddings=shape.tied,
        rms_norm_eps=1e-5,
        head_dim=shape.head_dim,
        initializer_range=shape.deviation,
        rope_parameters=None if shape.rope is None else dict(shape.rope),
        dtype=dtype,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
    )


def dummy_tokenizer(config: LlamaConfig) -> PreTrainedTokenizerFast:
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
