"""Architectures by their hyperparameters, and what the engine itself says that each would take.

`llama_model_init_from_user` makes a model from metadata alone, so an architecture of any size is measured without a file.
Run as a script, it reads `[[architecture, hyperparameters, points], …]` from stdin and answers a JSON list of measurements.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RMS, LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"


def shape(
    context: int, width: int, layers: int, ff: Any, heads: Any, kv: Any, vocab: int, eps: str = RMS
) -> dict[str, Any]:
    return {
        "context_length": context, "embedding_length": width, "block_count": layers, "feed_forward_length": ff,
        "attention.head_count": heads, "attention.head_count_kv": kv, eps: 1e-5, "vocab_size": vocab,
    }  # fmt: skip


def heads(size: int) -> dict[str, Any]:
    return {"attention.key_length": size, "attention.value_length": size}


def rope(size: int) -> dict[str, Any]:
    return {"rope.dimension_count": size}


def experts(count: int, used: int, ff: int) -> dict[str, Any]:
    return {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": ff}


def ssm(inner: int, state: int, rank: int, groups: int | None = None) -> dict[str, Any]:
    found = {"ssm.inner_size": inner, "ssm.state_size": state, "ssm.conv_kernel": 4, "ssm.time_step_rank": rank}
    return found if groups is None else found | {"ssm.group_count": groups}


def window(size: int) -> dict[str, Any]:
    return {"attention.sliding_window": size}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2": ("llama", shape(8192, 576, 30, 1536, 9, 3, 49152) | rope(64)),
    "llama-3.2-1b": ("llama", shape(131072, 2048, 16, 8192, 32, 8, 128256) | rope(64)),
    "mixtral": ("llama", shape(32768, 4096, 4, 14336, 32, 8, 32000) | rope(128) | experts(8, 2, 14336)),
    "qwen2": ("qwen2", shape(32768, 896, 24, 4864, 14, 2, 151936) | rope(64)),
    "qwen3": ("qwen3", shape(40960, 1024, 28, 3072, 16, 8, 151936) | heads(128)),
    "qwen3moe": ("qwen3moe", shape(40960, 2048, 4, 6144, 32, 4, 151936) | heads(128) | experts(128, 8, 768)),
    "phi2": ("phi2", shape(2048, 2560, 4, 10240, 32, 32, 51200, LAYER) | rope(32)),
    "phi4-mini": ("phi3", shape(131072, 3072, 32, 8192, 24, 8, 200064) | rope(96) | window(262144)),
    "gemma": ("gemma", shape(8192, 2048, 18, 16384, 8, 1, 256000) | heads(256)),
    "gemma2": ("gemma2", shape(8192, 2304, 26, 9216, 8, 4, 256000) | heads(256) | window(4096)),
    "gemma3-270m": ("gemma3", shape(32768, 640, 18, 2048, 4, 1, 262144) | heads(256) | window(512)),
    "gemma3-4b": ("gemma3", shape(131072, 2560, 34, 10240, 8, 4, 262208) | heads(256) | window(1024)),
    "gemma3n-e4b": ("gemma3n", shape(32768, 2048, 35, 16384, 8, 2, 262144) | heads(256) | window(512)),
    "gemma4-e2b": (
        "gemma4",
        shape(131072, 1536, 35, 6144, 8, 1, 262144) | heads(512) | window(512) | rope(512)
        | {"attention.key_length_swa": 256, "attention.value_length_swa": 256, "rope.dimension_count_swa": 256}
        | {"attention.shared_kv_layers": 20, "embedding_length_per_layer_input": 256}
        | {"attention.sliding_window_pattern": [bool((layer + 1) % 5) for layer in range(35)]}
        | {"final_logit_softcapping": 30.0, "rope.freq_base_swa": 10000.0},
    ),
    "gpt2": ("gpt2", shape(1024, 768, 12, 3072, 12, 12, 50257, LAYER)),
    "gptneox": ("gptneox", shape(2048, 2048, 4, 8192, 16, 16, 50304, LAYER) | rope(32) | {"use_parallel_residual": True}),
    "falcon": ("falcon", shape(2048, 4544, 4, 18176, 71, 1, 65024, LAYER)),
    "starcoder2": ("starcoder2", shape(16384, 3072, 4, 12288, 24, 2, 49152, LAYER) | rope(128)),
    "olmo2": ("olmo2", shape(4096, 2048, 16, 8192, 16, 16, 100352)),
    "cohere2": ("cohere2", shape(8192, 4096, 8, 14336, 32, 8, 256000, LAYER) | window(4096) | {"logit_scale": 0.25}),
    "deepseek2": (
        "deepseek2",
        shape(163840, 2048, 27, 10944, 16, 1, 102400) | rope(64) | experts(64, 6, 1408)
        | {"attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192}
        | {"attention.value_length_mla": 128, "attention.kv_lora_rank": 512, "leading_dense_block_count": 1}
        | {"expert_shared_count": 2, "expert_weights_scale": 1.0},
    ),
    "mamba": ("mamba", shape(1048576, 768, 4, 0, 0, 0, 50280) | ssm(1536, 16, 48)),
    "mamba2": ("mamba2", shape(1048576, 768, 4, 0, 0, 0, 50280) | ssm(1536, 128, 24, 1)),
    "rwkv6": (
        "rwkv6",
        shape(1048576, 2048, 4, 7168, 0, 0, 65536, LAYER)
        | {"wkv.head_size": 64, "rescale_every_n_layers": 6, "time_mix_extra_dim": 32, "time_decay_extra_dim": 64},
    ),
    "jamba": ("jamba", shape(262144, 2560, 8, 8192, 20, [0, 0, 0, 0, 4, 0, 0, 0], 65536) | ssm(5120, 16, 160)),
    "falcon-h1": ("falcon-h1", shape(131072, 1024, 8, 2048, 8, 2, 32784) | heads(64) | rope(64) | ssm(1536, 128, 24, 1)),
    "lfm2": ("lfm2", shape(128000, 1024, 8, 4608, 16, [0, 0, 8, 0, 0, 8, 0, 8], 65536) | {"shortconv.l_cache": 3}),
    "granite-hybrid": (
        "granitehybrid",
        shape(131072, 1536, 10, 4096, 12, [0, 0, 0, 0, 0, 4, 0, 0, 0, 0], 100352) | ssm(3072, 128, 48, 1),
    ),
    "qwen3next": (
        "qwen3next",
        shape(262144, 2048, 8, 5120, 16, 2, 151936) | heads(256) | rope(64) | ssm(4096, 128, 32, 16)
        | experts(64, 10, 512) | {"expert_shared_feed_forward_length": 512},
    ),
    "gpt-oss": ("gpt-oss", shape(131072, 2880, 4, 2880, 64, 8, 201088) | heads(64) | window(128) | experts(32, 4, 2880)),
    "llama4": (
        "llama4",
        shape(131072, 2048, 8, 8192, 16, 8, 202048) | heads(128) | rope(128) | experts(16, 1, 8192)
        | {"interleave_moe_layer_step": 1},
    ),
    "glm4": ("glm4", shape(32768, 4096, 4, 13696, 32, 2, 151552) | rope(64)),
    "granite": (
        "granite",
        shape(131072, 2048, 4, 8192, 32, 8, 49155)
        | {"logit_scale": 8.0, "residual_scale": 0.22, "embedding_scale": 12.0, "attention.scale": 0.015625},
    ),
    "exaone4": ("exaone4", shape(65536, 2048, 30, 4096, 32, 8, 102400)),
    "bert": ("bert", shape(512, 384, 12, 1536, 12, 12, 30522, LAYER) | {"attention.causal": False}),
    "nomic-bert": ("nomic-bert", shape(2048, 768, 12, 3072, 12, 12, 30522, LAYER) | {"attention.causal": False}),
}  # fmt: skip


def measure(requests: list[tuple[str, dict[str, Any], list[dict[str, Any]]]]) -> list[list[dict[str, Any]]]:
    """What the engine says each takes; in a subprocess."""
    from tea_models.engine.engine_settings import KV_TYPES

    def numbered(point: dict[str, Any]) -> dict[str, Any]:
        point = point | {key: KV_TYPES[point[key]].id for key in ("type_k", "type_v") if key in point}
        flash_attn = point.pop("flash_attn", None)
        return point if flash_attn is None else point | {"flash_attn_type": int(flash_attn)}

    requests = [(architecture, facts, list(map(numbered, points))) for architecture, facts, points in requests]
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(requests)
    return found


def _worker() -> Any:
    path = Path(__file__).parent.parent / "tea_models" / "engine" / "probe_worker.py"
    specification = importlib.util.spec_from_file_location("probe_worker", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def main() -> None:
    import llama_cpp as engine

    worker = _worker()
    base = engine.llama_cpp._lib  # names of ggml are found through it, whatever its files are called
    base.gguf_init_empty.restype = ctypes.c_void_p
    log = worker._Log(engine)
    engine.llama_backend_init()
    nothing = engine.llama_cpp.llama_model_set_tensor_data_t(lambda _tensor, _data: None)
    answers = []
    for architecture, hyperparameters, points in json.load(sys.stdin):
        log.clear()
        header = ctypes.c_void_p(base.gguf_init_empty())
        values = {f"{architecture}.{key}": value for key, value in hyperparameters.items()}
        values |= {"general.architecture": architecture, "tokenizer.ggml.model": "no_vocab"}
        values["tokenizer.ggml.token_type_count"] = 2
        for key, value in values.items():
            _set(base, header, key.encode(), value)
        parameters = engine.llama_model_default_params()
        parameters.no_alloc, parameters.load_mode, parameters.n_gpu_layers = True, 0, 0
        model = engine.llama_model_init_from_user(header, nothing, None, parameters)
        if not model:
            answers.append([{"error": "; ".join(log.errors[-3:])}])
            continue
        answers.append([worker._measure(engine, model, point, log, exact=True) for point in points])
        engine.llama_model_free(model)
    print(json.dumps(answers))


def _set(base: Any, header: Any, key: bytes, value: Any) -> None:
    if isinstance(value, bool):
        base.gguf_set_val_bool(header, key, ctypes.c_bool(value))
    elif isinstance(value, int):
        base.gguf_set_val_u32(header, key, ctypes.c_uint32(value))
    elif isinstance(value, float):
        base.gguf_set_val_f32(header, key, ctypes.c_float(value))
    elif isinstance(value, str):
        base.gguf_set_val_str(header, key, value.encode())
    else:
        kind, items = (7, ctypes.c_int8) if isinstance(value[0], bool) else (4, ctypes.c_uint32)
        base.gguf_set_arr_data(
            header, key, ctypes.c_int(kind), (items * len(value))(*value), ctypes.c_size_t(len(value))
        )


if __name__ == "__main__":
    main()
