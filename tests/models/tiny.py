"""Tiny networks, tokenizers and images that the reference tests are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import BertWordPieceTokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "a",
    "still",
    "of",
    "copper",
    "good",
    "bad",
    "film",
    "##s",
    "##ed",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = ["negative", "neutral", "positive"]
TEXTS = ["a good film", "the bad film", "copper stills of the quick brown fox", "dog"]


def word_tokenizer(words=WORDS):
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=BertWordPieceTokenizer(vocabulary)._tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=24,
    )


def byte_tokenizer():
    """Without a padding token, as many causal language models have it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<eos>"])
    tokenizer.train_from_iterator([*TEXTS, "the quick brown fox jumps over the lazy dog"], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", model_max_length=32
    )


def piece_tokenizer(extra=()):
    """In the manner of SentencePiece with bytes for what it does not know."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *extra]
    letters = sorted(set("".join(TEXTS)) - {" "})
    vocabulary += [*letters, "\u2581a", "oo", "\u2581g", "\u2581goo", "\u2581good"]
    merges = [("\u2581", "a"), ("o", "o"), ("\u2581", "g"), ("\u2581g", "oo"), ("\u2581goo", "d")]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def full_byte_tokenizer(size=400, texts=TEXTS):
    """Byte-level BPE that can write anything."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=["<eos>"], initial_alphabet=alphabet)
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def bert_config(layers=4, **options):
    return transformers.BertConfig(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        **options,
    )


def named(labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def save_classifier(folder: Path, labels=LABELS, layers=4, **options) -> Path:
    torch.manual_seed(0)
    names = named(labels) if labels else {}
    transformers.BertForSequenceClassification(bert_config(layers, **names, **options)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_llama(folder: Path, padding: int = 0) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + padding,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def picture(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth random colours, so that resizing means something."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def logits(network, raw):
    network.module.eval()
    with torch.no_grad():
        return network.forward(network.module, {"input": network.prepare(raw)})["logits"]


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(template=CHATML, size=300):
    """Byte pairs learnt from a few words, with the marks of ChatML; every byte is known."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "user\n assistant\n what does the cat dog bird sleeps runs sings"], trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", model_max_length=128
    )
    made.chat_template = template
    return made


def save_chat_llama(folder: Path, layers=4, seed=0, tokenizer=None) -> Path:
    """A Llama of random weights with tied embeddings, a chat template and settings of its own for generation."""
    torch.manual_seed(seed)
    tokenizer = tokenizer or chat_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.update(max_new_tokens=17)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
