"""A plan and its pinned bytes as a deployment: Kubernetes, KServe, Compose, vLLM.

What a server is told comes from the plan, the bytes from `models.lock`: an init step runs `sync --frozen` and refuses
any others. The documents are templates with places for values, beside this module.
"""

TARGETS = ("kubernetes", "kserve", "compose", "vllm")
