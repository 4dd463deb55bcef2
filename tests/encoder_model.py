"""A tiny BERT: an encoder with a word-piece vocabulary and random weights, for embeddings and nothing else."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

from tests.gguf_build import Tensor, array, build_gguf

WIDTH, FEED, CONTEXT = 32, 64, 128
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *"0123456789.,!"]


def build_encoder(path: Path, *, pooling: int = 1, **overrides: Any) -> None:
    """Write a BERT of two layers; `pooling` is llama.cpp's number."""
    tokens = [word if word.startswith("[") else f"\u2581{word}" for word in WORDS] + list(WORDS[5:])
    metadata: dict[str, Any] = {
        "general.architecture": "bert",
        "general.name": "Small Bert",
        "bert.block_count": 2,
        "bert.context_length": CONTEXT,
        "bert.embedding_length": WIDTH,
        "bert.feed_forward_length": FEED,
        "bert.attention.head_count": 4,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": pooling,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "jina-v2-en",
        "tokenizer.ggml.tokens": array("string", tokens),
        "tokenizer.ggml.token_type": array("int32", [3] * 5 + [1] * (len(tokens) - 5)),
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.mask_token_id": 4,
    } | overrides
    source = random.Random(0)

    def tensor(name: str, *shape: int) -> Tensor:
        count = 1
        for extent in shape:
            count *= extent
        base = 1.0 if "norm.weight" in name else 0.0
        return Tensor(name, shape, 0, struct.pack(f"<{count}f", *(base + source.gauss(0, 0.2) for _ in range(count))))

    tensors = [
        tensor("token_embd.weight", WIDTH, len(tokens)),
        tensor("token_types.weight", WIDTH, 2),
        tensor("position_embd.weight", WIDTH, CONTEXT),
        tensor("token_embd_norm.weight", WIDTH),
        tensor("token_embd_norm.bias", WIDTH),
    ]
    for block in range(2):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors += [
                tensor(f"blk.{block}.{part}.weight", WIDTH, WIDTH),
                tensor(f"blk.{block}.{part}.bias", WIDTH),
            ]
        for part in ("attn_output_norm", "layer_output_norm"):
            tensors += [tensor(f"blk.{block}.{part}.weight", WIDTH), tensor(f"blk.{block}.{part}.bias", WIDTH)]
        tensors += [
            tensor(f"blk.{block}.ffn_up.weight", WIDTH, FEED),
            tensor(f"blk.{block}.ffn_up.bias", FEED),
            tensor(f"blk.{block}.ffn_down.weight", FEED, WIDTH),
            tensor(f"blk.{block}.ffn_down.bias", WIDTH),
        ]
    path.write_bytes(build_gguf(metadata, tensors))
