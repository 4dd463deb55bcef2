"""How long a plan takes, and how far the formulas are from the engine's own dry run.

    python benchmarks/plan.py [MODEL.gguf …] [--architectures]

Times are medians of several runs, also as multiples of a bare `python -c pass`, so that they can be compared between
machines. Errors are estimate / measurement: an estimate is an upper bound, so at least 1.000. `--architectures`
measures every architecture of `tests/architectures.py` from its hyperparameters alone, without a file.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tea_models.engine.engine_settings import EngineSettings
from tea_models.engine.estimator import Estimator
from tea_models.engine.formula import MemoryUse
from tea_models.engine.probe import Prober
from tea_models.plan.planner import plan_profile
from tea_models.plan.resolve import choose_measurer, machine_now
from tea_models.plan.user_settings import UserSettings
from tea_models.profile.header_facts import profile_from_headers
from tea_models.profile.model_files import open_model
from tea_models.settings import Settings

RUNS = 5


def median_time(action, runs: int = RUNS) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bare_python() -> float:
    return median_time(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))


def command(*arguments: str, store: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "tea_models.cli", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "HOME": str(store), "TEA_MODELS_DIR": str(store / "models")},
    )


def time_model(path: Path, unit: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        settings = Settings.resolve({"HOME": folder, "TEA_MODELS_DIR": str(store / "models")}, cwd=store)
        print(f"\n{path.name}")
        rows = []

        def fresh() -> None:
            for file in (store / "models" / ".tea" / "probe").glob("*"):
                file.unlink()
            command("plan", str(path), store=store)

        rows.append(("plan, measured for the first time", median_time(fresh, 3)))
        rows.append(("plan, measured before", median_time(lambda: command("plan", str(path), store=store))))
        rows.append(("plan --estimate", median_time(lambda: command("plan", str(path), "--estimate", store=store))))
        with open_model(path, settings=settings) as model:
            profile = profile_from_headers(model.headers, model.files)
            one = [EngineSettings(n_ctx=4096, n_batch=512, n_ubatch=512)]
            many = [EngineSettings(n_ctx=256 * count, n_batch=512, n_ubatch=512) for count in range(1, 33)]
            first = median_time(lambda: Prober("0" * 64, path).measure(one), 3)
            rows.append(("dry run of one context", first))
            rows.append(("dry run of 32 contexts", median_time(lambda: Prober("0" * 64, path).measure(many), 3)))
            rows.append(("dry run from the header alone", median_time(lambda: Prober("0" * 64, model).measure(one), 3)))
            machine, user = machine_now(settings), UserSettings()
            estimator = Estimator(profile)
            rows.append(
                ("plan by formula, in process", median_time(lambda: plan_profile(profile, machine, user, estimator)))
            )
            plan = plan_profile(profile, machine, user, choose_measurer(profile, settings, model, measure=True))
        for name, seconds in rows:
            print(f"  {name:<36} {seconds * 1000:8.0f} ms  {seconds / unit:6.1f} x bare python")
        print(f"  n_ctx {plan.settings.n_ctx:,}, {plan.memory.total / 2**20:,.0f} MiB ({plan.memory.use.method})")
        compare(path, profile)


def compare(path: Path, profile) -> None:
    points = [
        EngineSettings(n_ctx=n_ctx, n_batch=512, n_ubatch=ubatch, type_k=kv, type_v=kv, swa_full=full)
        for n_ctx in (512, 4096, 32768)
        for ubatch in (512, 128)
        for kv in ("f16", "q8_0")
        for full in (False, True)
    ]
    measured, estimated = Prober("0" * 64, path).measure(points), Estimator(profile).measure(points)
    pairs = [
        (exact, rough)
        for exact, rough in zip(measured, estimated, strict=True)
        if isinstance(exact, MemoryUse) and isinstance(rough, MemoryUse)
    ]
    print(f"  estimate / measurement over {len(pairs)} combinations of settings")
    for part in ("kv_cache", "compute", "total"):
        ratios = [getattr(rough, part) / getattr(exact, part) for exact, rough in pairs]
        middle = statistics.median(ratios)
        print(f"    {part:<10} least {min(ratios):.3f}  median {middle:.3f}  most {max(ratios):.3f}")


def compare_architectures() -> None:
    from tests.architectures import CASES, measure
    from tests.test_memory import POINTS, estimate

    answers = measure([(architecture, facts, POINTS) for architecture, facts in CASES.values()])
    caches, computes, totals = [], [], []
    for name, found in zip(CASES, answers, strict=True):
        for point, exact in zip(POINTS, found, strict=True):
            if "error" in exact:
                continue
            kept, computed = estimate(name, point, exact)
            weights = sum(row["model"] for row in exact["buffers"])
            caches.append(kept == exact["kv_cache"])
            computes.append((computed / exact["compute"], name))
            total = weights + exact["kv_cache"] + exact["compute"]
            totals.append(((weights + kept + computed) / total, name))
    print(f"\n{len(CASES)} architectures, {len(caches)} combinations, from hyperparameters alone")
    print(f"  KV cache exact to the byte: {sum(caches)} of {len(caches)}")
    for label, ratios in (("compute", computes), ("total", totals)):
        ordered = sorted(ratios)
        least, most = ordered[0], ordered[-1]
        middle = statistics.median(ratio for ratio, _ in ratios)
        print(f"  {label:<8} least {least[0]:.3f} ({least[1]})  median {middle:.3f}  most {most[0]:.3f} ({most[1]})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--architectures", action="store_true")
    options = parser.parse_args()
    unit = bare_python()
    print(f"bare python: {unit * 1000:.0f} ms")
    for path in options.models:
        time_model(path, unit)
    if options.architectures or not options.models:
        compare_architectures()


if __name__ == "__main__":
    main()
