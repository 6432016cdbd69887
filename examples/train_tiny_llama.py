"""Train a tiny LLaMA on the `sampled` corpus, for the tests and the examples.

Usage: python examples/train_tiny_llama.py OUTPUT [--steps N] [--seed S]

The first 90 % of the corpus, by characters, is trained on; the last 10 % is held out. OUTPUT receives the model in
bf16 safetensors, its byte-level BPE tokenizer and a model card with the held-out perplexity.

Shape suffixes: B batch, S sequence, N tokens of a text, W windows, V vocabulary.
"""

import argparse
import gzip
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = Path(__file__).parents[1] / "optimum_grasprune" / "corpora" / "sampled" / "corpus.txt.gz"
VOCABULARY = 1024
WINDOW = 256  # tokens
BATCH = 8  # windows per step
PEAK_RATE = 3e-3
WARM_UP = 50  # steps
BOS, EOS = "<s>", "</s>"

CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# tiny-llama

A LLaMA of {parameters:,} parameters ({layers} layers, hidden size {hidden}, {heads} query heads, {kv_heads} KV heads,
FFN {ffn}, tied embeddings, {vocabulary} byte-level BPE tokens), made for the tests and the examples of
optimum-grasprune. It writes English-like sentences and knows nothing: do not use it for anything else.

- Training text: the first 90 % of the `sampled` corpus, sampled by SmolLM2-135M-Instruct (Apache-2.0).
- Training: {steps} steps of {batch} windows of {window} tokens, {trained:,} tokens in all: {epochs:.1f} times the
  {unique:,} tokens of the training text. AdamW, peak rate {rate}, seed {seed}, {minutes:.0f} minutes on one CPU thread.
- Held-out text: the last 10 % of the corpus as one stream of {held_out:,} tokens without special tokens, in
  {windows} non-overlapping windows of {window} tokens: {predicted:,} tokens predicted, in fp32, from the saved weights.

| model | held-out perplexity per token |
|---|---|
| unigram frequencies of the training text | {unigram:.1f} |
| tiny-llama | {perplexity:.2f} |

"The river" continued greedily:

> {sample}

Made by `python examples/train_tiny_llama.py OUTPUT --steps {steps} --seed {seed}`. License: Apache-2.0.
"""


def read_corpus() -> tuple[str, str]:
    """Return the training text (first 90 % of the characters) and the held-out text."""
    text = gzip.decompress(CORPUS.read_bytes()).decode("utf-8")
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def train_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer learnt from `text`, which puts BOS before what it encodes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text.split("\n\n"), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=2 * WINDOW
    )


def encode_documents(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """Return the documents of `text` as one stream tokens_N, each between BOS and EOS."""
    documents = tokenizer(text.split("\n\n"), verbose=False)["input_ids"]
    return torch.tensor([token for document in documents for token in [*document, tokenizer.eos_token_id]])


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained model in fp32, whose grouped-query attention has two query heads per KV head."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,  # the narrowest that vLLM's CPU attention serves
        max_position_embeddings=2 * WINDOW,
        tie_word_embeddings=True,
        initializer_range=0.06,  # the usual 0.02 suits wider layers and starts slower here
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at `step`: a linear warm-up, then half a cosine down to 5 %."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def next_token_loss(model: LlamaForCausalLM, tokens_BS: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy, in nats, of every token but the first of each row."""
    logits_BSV = model(input_ids=tokens_BS, use_cache=False).logits
    return cross_entropy(logits_BSV[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten())


def make_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """Return AdamW that decays the matrices and leaves the norms alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))


def train(model: LlamaForCausalLM, tokens_N: torch.Tensor, steps: int) -> None:
    """Train `model` in place on random windows of `tokens_N`."""
    optimizer = make_optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))
    windows_WS = tokens_N.unfold(0, WINDOW, 1)
    model.train()
    bar = tqdm(range(steps), unit="step", mininterval=5)
    for _ in bar:
        loss = next_token_loss(model, windows_WS[torch.randint(len(windows_WS), (BATCH,))])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def held_out_windows(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """Return `text` as windows_WS of WINDOW tokens that do not overlap; a shorter rest is left out."""
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    count = len(tokens) // WINDOW
    return torch.tensor(tokens[: count * WINDOW]).view(count, WINDOW)


@torch.inference_mode()
def perplexity(model: LlamaForCausalLM, windows_WS: torch.Tensor) -> float:
    """Return the perplexity per predicted token; each window predicts all its tokens but the first."""
    model.eval()
    losses = [next_token_loss(model, window_S[None]).item() for window_S in windows_WS]
    return math.exp(sum(losses) / len(losses))


def unigram_perplexity(tokens_N: torch.Tensor, windows_WS: torch.Tensor) -> float:
    """Return the perplexity, on the same predicted tokens, of the token frequencies of `tokens_N` plus one each."""
    counts_V = torch.bincount(tokens_N, minlength=VOCABULARY).double() + 1
    return torch.exp(-(counts_V / counts_V.sum()).log()[windows_WS[:, 1:]].mean()).item()


@torch.inference_mode()
def continue_greedily(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """Return `prompt` and the 60 likeliest next tokens on one line."""
    tokens_BS = tokenizer(prompt, return_tensors="pt")["input_ids"]
    output_BS = model.generate(tokens_BS, attention_mask=torch.ones_like(tokens_BS), max_new_tokens=60, do_sample=False)
    return " ".join(tokenizer.decode(output_BS[0], skip_special_tokens=True).split())


def describe(config: LlamaConfig) -> dict[str, int]:
    """Return the sizes that the model card names."""
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "ffn": config.intermediate_size,
        "vocabulary": config.vocab_size,
    }


def write_card(output: Path, tokens_N: torch.Tensor, held_out: str, options: argparse.Namespace, minutes: float) -> str:
    """Measure the model saved in `output`, write its card there and return the card."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output)
    model = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32)
    windows_WS = held_out_windows(tokenizer, held_out)
    trained = options.steps * BATCH * WINDOW
    card = CARD.format(
        **describe(model.config),
        parameters=model.num_parameters(),
        steps=options.steps,
        seed=options.seed,
        batch=BATCH,
        window=WINDOW,
        rate=PEAK_RATE,
        trained=trained,
        unique=len(tokens_N),
        epochs=trained / len(tokens_N),
        minutes=minutes,
        held_out=len(tokenizer(held_out, add_special_tokens=False, verbose=False)["input_ids"]),
        windows=len(windows_WS),
        predicted=windows_WS[:, 1:].numel(),
        unigram=unigram_perplexity(tokens_N, windows_WS),
        perplexity=perplexity(model, windows_WS),
        sample=continue_greedily(model, tokenizer, "The river"),
    )
    (output / "README.md").write_text(card, encoding="utf-8")
    return card


def main() -> None:
    """Train, save, measure."""
    parser = argparse.ArgumentParser(description="Train a tiny LLaMA on the `sampled` corpus.")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    text, held_out = read_corpus()
    tokenizer = train_tokenizer(text)
    tokens_N = encode_documents(tokenizer, text)
    model = build_model(tokenizer)
    start = time.perf_counter()
    train(model, tokens_N, options.steps)
    minutes = (time.perf_counter() - start) / 60
    model.to(torch.bfloat16).save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    print(write_card(options.output, tokens_N, held_out, options, minutes))


if __name__ == "__main__":
    main()
