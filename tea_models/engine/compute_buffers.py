"""The size of the engine's compute buffer, by replaying its allocator on the shape of the graph.

llama.cpp reserves the buffer for its worst case: a full physical batch at the end of a full context. Which tensors
live at the same time, and which holes the best-fit allocator leaves between them, decides the size. So the rules of
`ggml-alloc.c` (inputs first, reuse in place, best fit, merge of free blocks) are replayed on the nodes of one
transformer block and the output stage; blocks repeat, so two of them show the worst case.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tea_models.engine.formula import KV_TYPES, NO_CACHE, RECURRENT, CacheLayout, Hyperparameters, pad
from tea_models.engine.graph_replay import Graph

if TYPE_CHECKING:
    from tea_models.profile import ModelProfile

_F32, _F16 = 4, 2
_BLOCKS = 3  # the first, one that stands for all between, the last
_PATTERN = 7  # longer than any pattern of layers with and without a sliding window
# Feed-forward networks without a gate: up, activation, down.
_UNGATED = frozenset({
    "bert", "bloom", "codeshell", "falcon", "gpt2", "gptj", "gptneox", "jais", "jais2", "jina-bert-v3", "mpt",
    "nemotron", "nemotron_h", "nemotron_h_moe", "nomic-bert-moe", "orion", "phi2", "starcoder", "starcoder2", "arcee",
    "apertus", "t5",
})  # fmt: skip
# Gate and up in one tensor of twice the width.
_FUSED_GATE = frozenset(
    {"phi3", "phimoe", "chatglm", "glm4", "modern-bert", "jina-bert-v2", "neo-bert", "plamo2", "plamo3"}
)
# Query, key and value in one tensor, so that their rotation can't happen in place.
_FUSED_QKV = frozenset({
    "phi3", "gpt2", "gptneox", "falcon", "bloom", "mpt", "starcoder", "codeshell", "qwen", "dbrx", "nomic-bert",
    "nomic-bert-moe", "modern-bert", "neo-bert", "openelm", "plamo2", "plamo3", "jais", "jais2",
})  # fmt: skip
# The block's input is not normalised first: attention and feed-forward network read it as it is.
_WITHOUT_PRE_NORM = frozenset({"exaone4", "olmo2"})
# As in the first transformer: a LayerNorm after each sum.
_POST_NORM = frozenset({"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3"})
# Positions are added to the embeddings, not rotated into queries and keys.
_WITHOUT_ROPE = frozenset({"bert", "jina-bert-v2", "gpt2", "bloom", "mpt", "starcoder"})
# Attention and feed-forward network read the same norm, and are added together at the end.
_PARALLEL = frozenset({"phi2", "falcon", "gptj", "command-r", "cohere2", "cohere2moe", "plamo"})
# The rows that are asked for are picked after the last block, not inside it.
_PICKS_LATE = frozenset({"gpt-oss", "gemma3n", "gemma4", "mimo2", "ernie4_5"})


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the size of a graph: widths in elements, counts, and the settings."""

    tokens: int
    outputs: int
    cells: int
    window_cells: int
    width: int
    heads: int
    query: int
    key: int
    value: int
    attended: int
    feed_forward: int
    experts: int
    experts_used: int
    feed_forward_expert: int
    feed_forward_shared: int
    vocabulary: int
    flash_attn: bool
    gated: bool
    fused_gate: bool
    fused_qkv: bool
    cached: bool
    rms_norm: bool
    parallel: bool
    picks_late: bool
    pre_norm: bool
    post_norm: bool
    rotated: bool
    turned_key: bool
    turned_value: bool
    blocks: tuple[bool, ...]


def compute_bytes(
    profile: ModelProfile,
    layout: CacheLayout,
    *,
    n_ctx: int,
    n_batch: int,
    n_ubatch: int,
    swa_full: bool = False,
    flash_attn: bool = True,
    embeddings: bool = False,
    type_k: str = "f16",
    type_v: str = "f16",
) -> int:
    """Bytes of the compute buffer on the processor.

    Args:
        profile: The model.
        layout: From `cache_layout`.
        n_ctx: Context in tokens.
        n_batch: Logical batch in tokens.
        n_ubatch: Physical batch in tokens.
        swa_full: Whether layers with a sliding window keep the whole context.
        flash_attn: Whether attention is computed without the matrix of all scores.
        embeddings: The context is for embeddings.
        type_k: Type of the key cache.
        type_v: Type of the value cache.
    """
    h = Hyperparameters(profile)
    cells = pad(n_ctx, 256)
    tokens = min(n_ubatch, n_batch, cells) if h.architecture not in NO_CACHE else min(n_ubatch, n_batch)
    window = cells if swa_full else pad(min(cells, layout.window + tokens), 256)
    shape = _shape(h, profile, layout, tokens=tokens, cells=cells, window=window, flash_attn=flash_attn)
    shape = replace(
        shape,
        # What goes into a quantised cache is turned by a Hadamard matrix first (`attn_rot_k` of `llama_kv_cache`).
        turned_key=KV_TYPES[type_k][1] > 1 and layout.head_size_key % 64 == 0,
        turned_value=KV_TYPES[type_v][1] > 1 and layout.head_size_value % 64 == 0,
    )
    if h.architecture in RECURRENT:
        return _recurrent_graph(h, shape).peak()
    return _graph(shape, embeddings=embeddings).peak()


def _shape(
    h: Hyperparameters,
    profile: ModelProfile,
    layout: CacheLayout,
    *,
    tokens: int,
    cells: int,
    window: int,
    flash_attn: bool,
) -> Shape:
    heads = h.number("attention.head_count")
    key_heads = h.number("attention.head_count_kv", heads)
    vocabulary = profile.tokenizer.vocab_size.value or h.number("vocab_size")
    feed_forward_expert = h.number("expert_feed_forward_length", h.number("feed_forward_length"))
    return Shape(
        tokens=tokens,
        outputs=tokens,
        cells=cells,
        window_cells=window if layout.windowed else 0,
        width=h.number("embedding_length"),
        heads=heads,
        query=layout.head_size_key * heads,
        key=layout.head_size_key * key_heads,
        value=layout.head_size_value * key_heads,
        attended=layout.head_size_value * heads,
        feed_forward=h.number("feed_forward_length"),
        experts=h.number("expert_count"),
        experts_used=h.number("expert_used_count"),
        feed_forward_expert=feed_forward_expert,
        feed_forward_shared=h.number(
            "expert_shared_feed_forward_length", h.number("expert_shared_count") * feed_forward_expert
        ),
        vocabulary=vocabulary,
        flash_attn=flash_attn,
        gated=h.architecture not in _UNGATED,
        fused_gate=h.architecture in _FUSED_GATE,
        fused_qkv=h.architecture in _FUSED_QKV,
        cached=h.architecture not in NO_CACHE,
        rms_norm=h.has("attention.layer_norm_rms_epsilon"),
        parallel=h.architecture in _PARALLEL or bool(h.number("use_parallel_residual")),
        picks_late=h.architecture in _PICKS_LATE,
        pre_norm=h.architecture not in _WITHOUT_PRE_NORM | _POST_NORM,
        post_norm=h.architecture in _POST_NORM,
        rotated=h.architecture not in _WITHOUT_ROPE,
        turned_key=False,
        turned_value=False,
        blocks=_blocks(layout),
    )


def _blocks(layout: CacheLayout) -> tuple[bool, ...]:
    """Blocks that show the worst case, True for one with a sliding window: the first, and the last of a pattern."""
    kinds = [layer.windowed for layer in layout.layers if layer.key] or [False]
    if not any(kinds):
        return (False,) * min(_BLOCKS, max(2, len(kinds)))
    return (kinds[0], *kinds[max(1, len(kinds) - _PATTERN) :])


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Tensors that every block reads."""

    position: int
    rows: tuple[int, ...]
    mask: int
    span: int
    picks: int | None


def _graph(s: Shape, *, embeddings: bool) -> Graph:
    graph = Graph()
    graph.input(s.tokens * _F32)
    graph.input(s.width * s.tokens * _F32)  # room for embeddings in place of tokens; nothing uses it, so it stays
    position = graph.input(s.tokens * _F32)
    # Where a token's key and value go; a transposed value cache has a place for each element.
    elements = 1 if s.flash_attn else s.value
    rows = (graph.input(s.tokens * 8), graph.input(s.tokens * elements * 8)) if s.cached else ()
    scores = _F16 if s.flash_attn else _F32
    spans = [s.cells if s.cached else s.tokens]
    if any(s.blocks):
        spans.append(s.window_cells if s.cached else s.tokens)
    masks = [graph.input(span * s.tokens * scores) for span in spans]
    picks = graph.input(s.outputs * _F32)
    current = graph.op(s.width * s.tokens * _F32)
    last = -1 if s.picks_late or not s.cached else len(s.blocks) - 1
    for index, windowed in enumerate(s.blocks):
        number = 1 if windowed and len(masks) > 1 else 0
        inputs = _Inputs(position, rows, masks[number], spans[number], picks if index == last else None)
        current = _block(graph, s, current, inputs)
    if s.picks_late:
        current = graph.op(s.width * s.outputs * _F32, current, picks)
    # RMSNorm may take over its input's memory, LayerNorm may not (`ggml_op_can_inplace`).
    norm = graph.op(s.width * s.outputs * _F32, current, in_place=s.rms_norm)
    result = graph.op(s.width * s.outputs * _F32, norm, in_place=True, keep=True)
    if s.cached and not embeddings:
        graph.op(s.vocabulary * s.outputs * _F32, result, keep=True)
    return graph


def _block(graph: Graph, s: Shape, source: int, inputs: _Inputs) -> int:
    tokens = s.tokens
    wide = s.width * tokens * _F32
    norm = graph.op(wide, source, in_place=True) if s.pre_norm else source
    heads = _heads(graph, s, norm, inputs.position)
    attended = _attention(graph, s, heads, inputs)
    if s.turned_value:
        attended = graph.op(s.attended * tokens * _F32, attended)
    out = graph.op(wide, attended)
    count = tokens
    if inputs.picks is not None:
        count = s.outputs
        wide = s.width * count * _F32
        out, source = graph.op(wide, out, inputs.picks), graph.op(wide, source, inputs.picks)
        if s.parallel:
            norm = graph.op(wide, norm, inputs.picks)
    if s.parallel:
        down = _feed_forward(graph, s, norm, s.feed_forward, count)
        return graph.op(wide, graph.op(wide, down, out, in_place=True), source, in_place=True)
    residual = graph.op(wide, out, source, in_place=True)
    if s.post_norm:
        residual = graph.op(wide, residual)
    norm = graph.op(wide, residual, in_place=True) if s.pre_norm else residual
    down = _experts(graph, s, norm, count) if s.experts else _feed_forward(graph, s, norm, s.feed_forward, count)
    total = graph.op(wide, down, residual, in_place=True)
    return graph.op(wide, total) if s.post_norm else total


def _heads(graph: Graph, s: Shape, norm: int, position: int) -> tuple[int, int, int]:
    """Query, key and value. Heads are views, and memory is not taken over from a view: rotation makes new tensors."""
    query, key, value = (width * s.tokens * _F32 for width in (s.query, s.key, s.value))
    if s.fused_qkv:
        joined = graph.op(query + key + value, norm)
        if not s.rotated:
            return joined, joined, joined
        return graph.op(query, joined, position), graph.op(key, joined, position), joined
    queries = graph.op(query, norm)
    if s.rotated:
        queries = graph.op(query, queries, position)
    if s.turned_key:
        queries = graph.op(query, queries)
    values = graph.op(value, norm)
    if s.turned_value:
        values = graph.op(value, values)
    keys = graph.op(key, norm)
    if s.rotated:
        keys = graph.op(key, keys, position)
    if s.turned_key:
        keys = graph.op(key, keys)
    return queries, keys, values


def _attention(graph: Graph, s: Shape, heads: tuple[int, int, int], inputs: _Inputs) -> int:
    query, key, value = heads
    out = s.attended * s.tokens * _F32
    if inputs.rows:
        # Writing into the cache makes a view of the cache: nothing is allocated, but key and value are used up.
        stored = graph.op(0, key, inputs.rows[0])
        values = graph.op(0, value, inputs.rows[1])
        if s.flash_attn:
            return graph.op(out, query, stored, values, inputs.mask)
    elif s.flash_attn:
        stored = graph.op(s.key * s.tokens * _F16, key)
        values = graph.op(s.value * s.tokens * _F16, value)
        return graph.op(out, query, stored, values, inputs.mask)
    else:
        stored, values = key, value
    scores = inputs.span * s.tokens * s.heads * _F32
    score = graph.op(scores, query, stored)
    weights = graph.op(scores, score, inputs.mask, in_place=True)
    if not inputs.rows:
        values = graph.op(s.value * s.tokens * _F32, values)
    return graph.op(out, graph.op(out, weights, values))


def _feed_forward(graph: Graph, s: Shape, norm: int, inner: int, count: int) -> int:
    size = inner * count * _F32
    if s.fused_gate:
        hidden = graph.op(size, graph.op(2 * size, norm))
    elif s.gated:
        gate = graph.op(size, norm)
        up = graph.op(size, norm)
        hidden = graph.op(size, gate, up)
    else:
        hidden = graph.op(size, graph.op(size, norm), in_place=True)
    return graph.op(s.width * count * _F32, hidden)


def _experts(graph: Graph, s: Shape, norm: int, count: int) -> int:
    """Mixture of experts (`build_moe_ffn`): the chosen experts' rows side by side, then summed."""
    wide = s.width * count * _F32
    logits = graph.op(s.experts * count * _F32, norm)
    probabilities = graph.op(s.experts * count * _F32, logits, in_place=True)
    chosen = graph.op(s.experts * count * _F32, probabilities)
    weights = graph.op(s.experts_used * count * _F32, probabilities, chosen)
    rows = s.feed_forward_expert * s.experts_used * count * _F32
    up = graph.op(rows, norm, chosen)
    gate = graph.op(rows, norm, chosen)
    hidden = graph.op(rows, gate, up)
    down = graph.op(s.width * s.experts_used * count * _F32, hidden, chosen)
    down = graph.op(s.width * s.experts_used * count * _F32, down, weights, in_place=True)
    mixed = graph.op(wide, down, down) if s.experts_used > 1 else down
    for _ in range(s.experts_used - 2):
        mixed = graph.op(wide, mixed, down, in_place=True)
    if s.feed_forward_shared:
        shared = _feed_forward(graph, s, norm, s.feed_forward_shared, count)
        mixed = graph.op(wide, mixed, shared, in_place=True)
    return mixed


def _recurrent_graph(h: Hyperparameters, s: Shape) -> Graph:
    """A state space or RWKV block, roughly: projections of twice the inner width, then the output stage."""
    inner = h.number("ssm.inner_size", s.width)
    state = h.number("ssm.state_size", 1)
    graph = Graph()
    graph.input(s.tokens * _F32)
    picks = graph.input(s.outputs * _F32)
    wide = s.width * s.tokens * _F32
    current = graph.op(wide)
    for block in range(2):
        norm = graph.op(wide, graph.op(wide, current, in_place=True), in_place=True)
        projected = graph.op(2 * inner * s.tokens * _F32, norm)
        joined = graph.op(inner * (s.tokens + 3) * _F32, projected)
        convolved = graph.op(inner * s.tokens * _F32, joined)
        activated = graph.op(inner * s.tokens * _F32, convolved, in_place=True)
        scanned = graph.op(inner * (s.tokens + state) * _F32, activated)
        gated = graph.op(inner * s.tokens * _F32, scanned, projected)
        out = graph.op(wide, gated)
        if block == 1:
            out, current = graph.op(wide, out, picks), graph.op(wide, current, picks)
        current = graph.op(wide, out, current, in_place=True)
    norm = graph.op(wide, graph.op(wide, current, in_place=True), in_place=True)
    graph.op(s.vocabulary * s.outputs * _F32, norm, keep=True)
    return graph
