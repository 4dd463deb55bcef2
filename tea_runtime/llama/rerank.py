"""Query and document as one text, as a reranker was trained to read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tea_models.errors import UsageError
from tea_runtime.llama.engine import llama

if TYPE_CHECKING:
    from tea_runtime.llama.vocabulary import Vocabulary
    from tea_runtime.llama.weights import Weights


def pair_tokens(weights: Weights, vocabulary: Vocabulary, query: str, document: str) -> list[int]:
    """The tokens of a pair: by the model's own `rerank` template, or `BOS query EOS SEP document EOS`.

    The same rules as llama-server's (format_prompt_rerank).
    """
    if not query or not document:
        raise UsageError(f"{'documents' if query else 'query'}: an empty text can't be scored")
    engine = llama()
    template: bytes | None = engine.llama_model_chat_template(weights.model, b"rerank")
    if template:
        texts = {"{query}": query, "{document}": document}
        tokens: list[int] = []
        for piece in re.split("({query}|{document})", template.decode("utf-8", "replace")):
            tokens += vocabulary.tokenize(texts.get(piece, piece), special=piece not in texts) if piece else []
        return vocabulary.with_bos(tokens)
    vocab = weights.vocab
    eos = engine.llama_vocab_eos(vocab)
    if eos < 0:
        eos = engine.llama_vocab_sep(vocab)
    end = [eos] if engine.llama_vocab_get_add_eos(vocab) else []
    begin = [vocabulary.bos] if vocabulary.add_bos and vocabulary.bos is not None else []
    between = [engine.llama_vocab_sep(vocab)] if engine.llama_vocab_get_add_sep(vocab) else []
    first, second = (vocabulary.tokenize(text, special=False) for text in (query, document))
    return [*begin, *first, *end, *between, *second, *end]
