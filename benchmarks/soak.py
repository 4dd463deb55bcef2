"""Many requests of random kinds from 16 threads, a third of them abandoned: no error, no growth, no thread left.

python benchmarks/soak.py [--requests 2000] [--model MODEL] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from engine import LONG, PROMPT, backend_of, prompts

from tea_models.errors import TeaModelsError
from tea_runtime import LlmCallParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="path or reference of an installed model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=2000)
    soak(parser.parse_args())


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(options: argparse.Namespace) -> None:
    with backend_of(options, n_ctx=8192) as backend:
        left, lock, failed, sizes = options.requests, threading.Lock(), [], []
        backend.call(prompts(1, 1)[0])
        threads_before = threading.active_count()

        def work(seed: int) -> None:
            nonlocal left
            source = random.Random(seed)
            while True:
                with lock:
                    if left <= 0:
                        return
                    left -= 1
                    if left % 200 == 0:
                        sizes.append(resident())
                        print(f"{options.requests - left} requests, {sizes[-1]:.0f} MiB", flush=True)
                try:
                    one_request(source)
                except TeaModelsError as error:
                    failed.append(error)

        def one_request(source: random.Random) -> None:
            prompt = LONG * source.randrange(12) + f"{source.random()} {PROMPT}"
            kind = source.randrange(6)
            if kind < 2:
                with backend.stream(LlmCallParams(prompt, None, 0.8)) as stream:
                    for _, _ in zip(range(source.randrange(4)), stream, strict=False):
                        pass
            elif kind == 2:
                backend.call(LlmCallParams(prompt, source.randrange(1, 30), 0))
            elif kind == 3:
                backend.chat([{"role": "user", "content": prompt}], 12, 1.0)
            elif kind == 4:
                backend.embed([prompt, "short"])
            else:
                wanted = {"type": "json_object", "schema": {"type": "boolean"}}
                backend.call(LlmCallParams(prompt, 8, 0, response_format=wanted))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while sum(backend.load_figures()[key] for key in ("running", "waiting")):
            time.sleep(0.01)
        print(f"errors: {failed[:3] or 'none'}; threads left: {threading.active_count() - threads_before}")
        print(f"memory after the first 200: {sizes[0]:.0f} MiB, at the end: {sizes[-1]:.0f} MiB")


if __name__ == "__main__":
    main()
