"""What a model takes to run, by formula: weights, KV cache, compute buffers.

The KV cache follows `llama_model::create_memory` and `llama_kv_cache` of llama.cpp layer by layer, so it is exact for
the architectures named here; the compute buffer is bounded from above. The engine's own dry run (`probe`) answers the
same question by measurement; this is for where the engine is not installed, and to check it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tea_models.engine.engine_settings import KV_TYPES, EngineSettings
from tea_models.profile.facts import ModelProfile

MIB = 1024 * 1024
_F32, _F16 = 4, 2

# Encoders and diffusion models keep nothing between calls.
NO_CACHE = frozenset({
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "wavtokenizer-dec",
    "modern-bert", "gemma-embedding", "dream", "llada", "llada-moe", "rnd1", "t5encoder",
})  # fmt: skip
RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
# Hybrids whose recurrent layers are those without KV heads.
_RECURRENT_WITHOUT_HEADS = frozenset({
    "jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "kimi-linear", "kimi-k3",
    "bailingmoe3", "glm5-next",
})  # fmt: skip
# Hybrids with full attention in every n-th layer.
_RECURRENT_BY_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
# Sliding windows: every n-th layer is dense (`load_swa_pattern`), for some the first of n, else the last.
_WINDOW_PATTERN = {"gemma2": 2, "gpt-oss": 2, "gemma3n": 5, "gemma3": 6, "plamo3": 8} | dict.fromkeys(
    ("afmoe", "cohere2", "cohere2moe", "exaone-moe", "exaone4", "laguna", "llama4", "mellum", "muse-glimmer", "olmo2",
     "smallthinker"), 4,
)  # fmt: skip
_DENSE_FIRST = frozenset({"cohere2moe", "laguna", "smallthinker"})
# Sliding windows whose pattern the file must give layer by layer.
_WINDOW_BY_FILE = frozenset({"gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"})
_WINDOW_DEFAULT = {"gemma2": 4096, "exaone-moe": 128, "llama4": 8192}


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """What one layer keeps."""

    key: int = 0  # elements a token in the key cache
    value: int = 0
    windowed: bool = False  # only the last tokens are kept, as many as the sliding window
    state: int = 0  # bytes of recurrent state a sequence (always f32)


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """What a model keeps between tokens: each layer that has a cache or a state."""

    layers: tuple[CacheLayer, ...]
    window: int  # in tokens, 0 without one
    head_size_key: int  # elements of a head; a quantised type must divide them
    head_size_value: int
    exact: bool  # these rules describe the architecture; otherwise plain attention was assumed

    @property
    def windowed(self) -> bool:
        return any(layer.windowed for layer in self.layers)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What one combination of settings takes, in bytes."""

    weights: int
    kv_cache: int  # and recurrent states
    compute: int  # the compute buffers that the engine reserves
    overhead: int  # the process itself: Python, the engine, tokenizer, output buffer
    method: str  # `measured` by the engine's dry run or `estimated` by formula
    flash_attn: bool | None = None
    repacked: int = 0  # of the weights, what the engine rearranges into a copy for this processor
    mapped: bool = True  # the file should be mapped into memory; then the rearranged weights are there twice
    devices: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # weights, kv_cache, compute on each

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.compute + self.overhead

    @property
    def host(self) -> int:
        """The part that lies in the machine's own memory."""
        return self.total - sum(sum(parts) for parts in self.devices.values())


class Hyperparameters:
    """Typed reads of a profile's hyperparameters (keys without the architecture's prefix)."""

    def __init__(self, profile: ModelProfile) -> None:
        self._facts = profile.hyperparameters
        self.architecture = profile.architecture.value
        self.layers = max(0, self.number("block_count"))

    def number(self, key: str, default: int = 0) -> int:
        """A whole number; the largest of an array."""
        value = self.value(key)
        if isinstance(value, tuple):
            return max(_numbers(value), default=default)
        return int(value) if isinstance(value, int | float) else default

    def each(self, key: str, default: int = 0) -> list[int]:
        """One number a layer, from an array or one number for all."""
        value = self.value(key)
        if isinstance(value, tuple):
            return (_numbers(value) + [default] * self.layers)[: self.layers]
        return [self.number(key, default)] * self.layers

    def has(self, key: str) -> bool:
        return key in self._facts

    def value(self, key: str) -> object:
        fact = self._facts.get(key)
        return fact.value if fact is not None else None


def _numbers(values: tuple[object, ...]) -> list[int]:
    return [int(value) for value in values if isinstance(value, int | float)]


def row_bytes(kv_type: str, elements: int) -> int:
    """Bytes of a row of a tensor (`ggml_row_size`)."""
    kind = KV_TYPES[kv_type]
    return kind.type_size * elements // kind.block_size


def pad(number: int, multiple: int) -> int:
    """The next multiple of a power of two (`GGML_PAD`)."""
    return (number + multiple - 1) // multiple * multiple


def cache_layout(profile: ModelProfile) -> CacheLayout:
    """What each layer of a model keeps (llama.cpp's `create_memory`, `llama_hparams` and each `load_arch_hparams`)."""
    h = Hyperparameters(profile)
    heads = h.each("attention.head_count")
    kv_heads = h.each("attention.head_count_kv") if h.has("attention.head_count_kv") else list(heads)
    head_size = h.number("embedding_length") // max(heads, default=1) if any(heads) else 0
    key, value = h.number("attention.key_length", head_size), h.number("attention.value_length", head_size)
    key_window = h.number("attention.key_length_swa", key)
    value_window = h.number("attention.value_length_swa", value)
    if h.architecture in NO_CACHE:
        return CacheLayout((), 0, key, value, exact=True)
    window, windowed = _windows(h)
    recurrent = _recurrent_layers(h, kv_heads)
    state = _state_bytes(h, heads)
    mla = h.number("attention.key_length_mla") > 0 and h.number("attention.value_length_mla") > 0
    layers = []
    for index in range(_cached_layers(h)):
        width_key = (key_window if windowed[index] else key) * kv_heads[index]
        width_value = (value_window if windowed[index] else value) * kv_heads[index]
        attends = not recurrent[index] or h.architecture == "falcon-h1"
        if h.architecture.startswith("nemotron_h") and h.each("feed_forward_length")[index]:
            # A layer of these is one thing only; feed-forward layers keep nothing.
            continue
        layers.append(
            CacheLayer(
                key=width_key if attends else 0,
                value=width_value if attends and not mla else 0,
                windowed=windowed[index],
                state=state if recurrent[index] else 0,
            )
        )
    if h.architecture in ("deepseek32", "glm-dsa") and h.has("attention.indexer.key_length"):
        # The key cache of sparse attention's indexer: one head in each layer.
        layers += [CacheLayer(key=h.number("attention.indexer.key_length"))] * _cached_layers(h)
    return CacheLayout(tuple(layers), window, key, value, exact=h.architecture not in _UNKNOWN_CACHE)


# Caches with parts of their own that these rules leave out.
_UNKNOWN_CACHE = frozenset(
    {"deepseek4", "dflash", "dots3note", "minimax-m3", "hrm_text", "nanbeige", "eagle3", "gemma4-assistant"}
)


def kv_cache_bytes(layout: CacheLayout, settings: EngineSettings) -> int:
    """Bytes of KV cache and recurrent state."""
    type_k, type_v, n_seq_max = settings.type_k, settings.type_v, settings.n_seq_max
    cells = pad(pad(settings.n_ctx, 256) // n_seq_max, 256)
    # A window cache has room for a batch beside the window.
    small = cells if settings.swa_full else pad(min(cells, layout.window + settings.n_ubatch), 256)
    # Without flash attention the value cache is transposed, and padded to the widest layer.
    widest = max((layer.value for layer in layout.layers), default=0) if settings.flash_attn is False else 0
    total = 0
    for layer in layout.layers:
        count = (small if layer.windowed else cells) * n_seq_max
        total += row_bytes(type_k, layer.key) * count + layer.state * n_seq_max
        total += row_bytes(type_v, max(widest, layer.value) if layer.value else 0) * count
    return total


def kv_bytes_per_token(layout: CacheLayout, type_k: str = "f16", type_v: str = "f16") -> int:
    """Bytes that one more token of context costs beyond the sliding window."""
    growing = (layer for layer in layout.layers if not layer.windowed)
    return sum(row_bytes(type_k, layer.key) + row_bytes(type_v, layer.value) for layer in growing)


def compute_bytes(profile: ModelProfile, layout: CacheLayout, settings: EngineSettings) -> int:
    """Bytes that the compute buffer on the processor takes at most.

    The engine reserves it for its worst case, a full physical batch at the end of a full context. Its largest stage
    (logits, attention, feed-forward network, experts or recurrent state) decides; beside that lie the inputs, the
    masks, and what the allocator can't reuse in time, about six rows of the model's width a token.
    """
    h = Hyperparameters(profile)
    cached = h.architecture not in NO_CACHE
    flash_attn = settings.flash_attn is not False
    cells = pad(settings.n_ctx, 256)
    tokens = min(settings.n_ubatch, cells) if cached else settings.n_ubatch
    span = cells if cached else tokens
    window = (span if settings.swa_full else min(span, pad(layout.window + tokens, 256))) if layout.windowed else 0
    masks = 0 if h.architecture in RECURRENT else (span + window) * (_F16 if flash_attn else _F32)
    width, heads = h.number("embedding_length"), h.number("attention.head_count")
    key_heads = h.number("attention.head_count_kv", heads)
    query, key = layout.head_size_key * heads, layout.head_size_key * key_heads
    value, attended = layout.head_size_value * key_heads, layout.head_size_value * heads
    scores = 0 if flash_attn else span * heads
    feed_forward, experts_used = h.number("feed_forward_length"), h.number("expert_used_count")
    expert = h.number("expert_feed_forward_length", feed_forward)
    inner = h.number("ssm.inner_size")
    vocabulary = profile.tokenizer.vocab_size.value or h.number("vocab_size")
    stages = (
        vocabulary if cached else 0,
        2 * (width + query) + key + value + attended + scores,
        3 * (width + feed_forward),
        3 * width + experts_used * (3 * expert + width) + 3 * h.number("expert_count"),
        3 * width + 5 * inner,
    )
    beside = 5 * width + query if cached else width
    rows = 8 if flash_attn else 8 * (1 + value)  # where a token's key and value go in the cache
    return tokens * (_F32 * (max(stages) + beside) + masks + rows) + MIB


def _cached_layers(h: Hyperparameters) -> int:
    layers = h.layers
    if h.architecture == "gemma3n":
        # The later layers use the cache of layers 18 and 19 (`n_layer_kv_from_start`).
        return min(layers, 20)
    if h.architecture == "gemma4":
        return max(0, layers - h.number("attention.shared_kv_layers"))
    # Layers that predict further tokens take no part in ordinary decoding.
    return max(0, layers - h.number("nextn_predict_layers"))


def _windows(h: Hyperparameters) -> tuple[int, list[bool]]:
    """The sliding window, and which layers have it."""
    none = [False] * h.layers
    window = h.number("attention.sliding_window", _WINDOW_DEFAULT.get(h.architecture, 0))
    if h.architecture == "llama4" and (not h.has("attention.sliding_window") or window):
        window = 8192  # chunked attention, whatever the file says
    if h.architecture == "exaone4" and h.layers == 64:
        window = window or 4096
    if window <= 0:
        return 0, none
    if h.architecture == "lfm2":
        return window, [heads > 0 for heads in h.each("attention.head_count_kv")]
    if h.architecture == "exaone4" and h.layers != 64:
        return 0, none
    if h.architecture in _WINDOW_BY_FILE or h.architecture in _WINDOW_PATTERN:
        pattern = "attention.sliding_window_pattern"
        if isinstance(h.value(pattern), tuple):
            return window, [bool(flag) for flag in h.each(pattern)]
        if h.architecture in _WINDOW_BY_FILE and not h.has(pattern):
            return window, none
        every = h.number(pattern, _WINDOW_PATTERN.get(h.architecture, 0))
        dense = 0 if h.architecture in _DENSE_FIRST else every - 1
        ordinary = h.layers - h.number("nextn_predict_layers")
        return window, [index < ordinary and (not every or index % every != dense) for index in range(h.layers)]
    # Phi-3, Qwen2, Mistral and others name a window that llama.cpp does not use.
    return 0, none


def _recurrent_layers(h: Hyperparameters, kv_heads: Sequence[int]) -> list[bool]:
    if h.architecture in RECURRENT or h.architecture == "falcon-h1":
        return [True] * h.layers
    if h.architecture in _RECURRENT_WITHOUT_HEADS:
        return [heads == 0 for heads in kv_heads]
    if h.architecture in _RECURRENT_BY_INTERVAL:
        if h.has("attention.recurrent_layers"):
            return [bool(flag) for flag in h.each("attention.recurrent_layers")]
        every = h.number("full_attention_interval", _RECURRENT_BY_INTERVAL[h.architecture])
        return [(index + 1) % max(1, every) != 0 for index in range(h.layers)]
    return [False] * h.layers


def _state_bytes(h: Hyperparameters, heads: Iterable[int]) -> int:
    """Bytes of recurrent state a layer and sequence (`n_embd_r` and `n_embd_s`, both f32)."""
    width = h.number("embedding_length")
    most_heads = max(heads, default=0)
    if h.has("wkv.head_size"):
        shift = h.number("token_shift_count", 1 if h.architecture in ("rwkv6qwen2", "arwkv7") else 2)
        return 4 * (shift * width + width * h.number("wkv.head_size"))
    if h.has("shortconv.l_cache") and h.architecture in ("lfm2", "lfm2moe"):
        return 4 * width * (h.number("shortconv.l_cache") - 1)
    kernel, inner, state = h.number("ssm.conv_kernel"), h.number("ssm.inner_size"), h.number("ssm.state_size")
    if h.has("kda.head_dim") and h.architecture in ("kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next"):
        size = h.number("kda.head_dim")
        return 4 * (3 * (kernel - 1 if kernel else 3) * most_heads * size + size * size * most_heads)
    if h.architecture == "minimax-01":
        size = h.number("attention.key_length")
        return 4 * size * size * most_heads
    conv = max(0, kernel - 1) * (inner + 2 * h.number("ssm.group_count") * state)
    return 4 * (conv + state * inner)
