"""Trains the two small tokenizers on captions and builds the text encoders that the pipelines expect."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

IMAGE_TOKENS = 32  # padded text length of emoji-flux and emoji-sd, for both tokenizers
VIDEO_TOKENS = 64  # padded text length of emoji-wan


def clip_tokenizer(corpus: Sequence[str], vocab_size: int = 2048) -> CLIPTokenizer:
    """A byte-level BPE tokenizer with CLIP's rules, trained on ``corpus``."""
    tok = Tokenizer(
        models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>", continuing_subword_prefix="")
    )
    tok.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tok.train_from_iterator(corpus, trainer)
    model = json.loads(tok.to_str())["model"]
    vocab, merges = (
        model["vocab"],
        [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]],
    )
    for ch in sorted(alphabet):  # CLIP also has every byte with the word-end mark
        vocab.setdefault(ch + "</w>", len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=IMAGE_TOKENS)


def t5_tokenizer(corpus: Sequence[str], max_length: int = IMAGE_TOKENS) -> T5Tokenizer:
    """A word-level Unigram tokenizer with single characters as the fallback.

    (A trained Unigram model keeps too few pieces on so small a vocabulary and spells most words in letters.)
    """
    count = Counter(word for caption in corpus for word in caption.split())
    total = sum(count.values())
    letters = sorted({ch for word in count for ch in word} | set("abcdefghijklmnopqrstuvwxyz0123456789-,.'"))
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -8.0)]
    vocab += [
        ("\u2581" + word, math.log(n / total))
        for word, n in sorted(count.items(), key=lambda x: (-x[1], x[0]))
    ]
    known = {piece for piece, _ in vocab}
    vocab += [(ch, -12.0) for ch in letters if ch not in known]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=max_length)


def clip_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """The pooled-text encoder of Flux and the token encoder of Stable Diffusion; heads are 64 wide."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=IMAGE_TOKENS,
        projection_dim=width,
        # Without these ids the pooled token would be taken at the wrong place.
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="quick_gelu",
    )
    return CLIPTextModel(config)


def t5_encoder(
    tokenizer: T5Tokenizer, width: int, layers: int, multilingual: bool = False
) -> torch.nn.Module:
    """A T5 encoder, or a UMT5 encoder (``multilingual``, the class that WanPipeline names)."""
    config_class, model_class = (UMT5Config, UMT5EncoderModel) if multilingual else (T5Config, T5EncoderModel)
    heads = max(1, width // 64)
    config = config_class(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        is_encoder_decoder=False,
        use_cache=False,
    )
    model = model_class(config)
    model.shared.weight.data.normal_(0, 0.5)  # T5's own initialisation is meant for a tied output head
    return model


def token_ids(tokenizer: CLIPTokenizer | T5Tokenizer, captions: Sequence[str], length: int) -> torch.Tensor:
    """Ids (N, length) int64, padded and cut as the pipelines do it."""
    batch = tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return batch.input_ids
