# $name by vLLM, written by: tea-models export $reference --to vllm
# vLLM serves the upstream weights: the same model, not quantised, so answers differ and memory is larger.
vllm serve $repository --revision $revision --served-model-name $quoted_name --max-model-len $n_ctx --host 127.0.0.1 --port 8000
