"""How long start-up and a look at a header take: `tea-models` beside its peers, and as ratios to a bare Python start.

    python benchmarks/inspect.py [MODEL] [--rounds N]

MODEL is a path or a reference; by default Gemma 3 270M, whose vocabulary of 262,144 tokens makes a header of 6.5 MB.
Peers that are not installed are skipped aloud. Processor time is counted, not the clock, so that other work on the
machine counts little; each round runs every program once. Aims, over bare Python: `--version` 30 ms, `list` 60 ms,
`inspect` 80 ms and 0.8 x gguf-inspect.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

if __name__ == "inspect":
    # Python looks for modules beside a script first: to the scripts of this folder, this file hides the standard
    # library's `inspect`, which dataclasses need. So it makes way for it.
    spec = importlib.util.spec_from_file_location("inspect", Path(os.__file__).parent / "inspect.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["inspect"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["inspect"])

import argparse
import resource
import shutil
import statistics
import subprocess
import tempfile

PLAIN_LOOP = """
import mmap, struct, sys
with open(sys.argv[1], "rb") as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
u32, u64 = struct.Struct("<I").unpack_from, struct.Struct("<Q").unpack_from
at = 24
for _ in range(u64(data, 16)[0]):
    at += 8 + u64(data, at)[0]
    kind = u32(data, at)[0]
    at += 4
    count = 1
    if kind == 9:
        kind, count = u32(data, at)[0], u64(data, at + 4)[0]
        at += 12
    if kind == 8:
        for _ in range(count):
            at += 8 + u64(data, at)[0]
    else:
        at += sizes[kind] * count
"""
VOCAB_ONLY = """
import sys, llama_cpp
quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, None)
params = llama_cpp.llama_model_default_params()
params.vocab_only = True
sys.exit(0 if llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params) else 1)
"""
LIBRARY = """
import sys, time
from pathlib import Path
from tea_models import inspect_model
inspect_model(sys.argv[1])
times = []
for _ in range(5):
    started = time.perf_counter()
    inspect_model(sys.argv[1])
    times.append(time.perf_counter() - started)
print(min(times))
"""


def peers(model: Path, store: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Commands with their environment; those that can't run here are named and left out."""
    ours = str(Path(sys.executable).parent / "tea-models")
    environ = {"TEA_MODELS_DIR": str(store)}
    everything: dict[str, tuple[list[str], dict[str, str]]] = {
        "python -c pass": ([sys.executable, "-c", "pass"], {}),
        "tea-models --version": ([ours, "--version"], environ),
        "tea-models list": ([ours, "list"], environ),
        "tea-models inspect": ([ours, "inspect", str(model)], environ),
        "a plain loop over mmap (parse only)": ([sys.executable, "-c", PLAIN_LOOP, str(model)], {}),
    }
    dump = shutil.which("gguf-dump", path=str(Path(sys.executable).parent)) or shutil.which("gguf-dump")
    if dump:
        everything["gguf-dump --no-tensors"] = ([dump, "--no-tensors", str(model)], {})
    else:
        print("skipped: gguf-dump is not installed (pip install gguf)")
    if importlib.util.find_spec("llama_cpp"):
        everything["llama.cpp, vocab_only"] = ([sys.executable, "-c", VOCAB_ONLY, str(model)], {})
    else:
        print("skipped: llama-cpp-python is not installed (the extra llm-local)")
    for name in ("gguf-inspect", "modelinfo", "ggufdoctor"):
        if shutil.which(name):
            everything[name] = ([name, str(model)], {})
        else:
            print(f"skipped: {name} is not installed")
    return everything


def measure(command: list[str], environ: dict[str, str]) -> float:
    """Seconds of processor time that a process takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=os.environ | environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="gemma3-270m-base")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    model = Path(options.model)
    if not model.is_file():
        from tea_models import pull

        model = Path(pull([options.model])[0].path)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ".tea").mkdir()
        commands = peers(model, Path(folder))
        times: dict[str, list[float]] = {name: [] for name in commands}
        for round_ in range(options.rounds + 1):
            for name, (command, environ) in commands.items():
                if name.startswith("gguf-dump") and round_ > 2:
                    continue  # it takes seconds
                took = measure(command, environ)
                if round_:  # the first round warms caches up
                    times[name].append(took)
        library = float(subprocess.check_output([sys.executable, "-c", LIBRARY, str(model)]))
    bare = min(times["python -c pass"])
    print(f"\n{model.name}, {os.cpu_count()} cores, Python {sys.version.split()[0]}\n")
    print(f"{'':<38}{'least':>10}{'median':>10}{'ratio':>8}{'over Python':>14}")
    for name, found in sorted(times.items(), key=lambda item: min(item[1])):
        row = f"{name:<38}{min(found):>8.3f} s{statistics.median(found):>8.3f} s{min(found) / bare:>8.1f}"
        print(f"{row}{min(found) - bare:>12.3f} s")
    print(f"{'inspect_model(…), a call':<38}{library:>8.3f} s")


if __name__ == "__main__":
    main()
