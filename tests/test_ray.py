"""`map` on a real Ray cluster of two nodes on this machine, one of which is killed half-way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tea_models.errors import UsageError
from tea_runtime.mapping.ray import map_rows_on_ray
from tea_runtime.mapping.rows import Row
from tests.test_mapping import Output, lines

ray = pytest.importorskip("ray", reason="checked where ray[data] is installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SLOW = """
name: slow
nodes:
  - name: double
    run: |
      import time
      time.sleep(0.05)
      return {"double": state["n"] * 2}
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_all_rows_are_there_once_although_a_node_dies(tmp_path: Path, cluster: Any) -> None:
    flow = tmp_path / "flow" / "slow.yaml"
    flow.parent.mkdir()
    flow.write_text(SLOW)
    rows = [Row(index, {"n": index}) for index in range(200)] + [Row(200, None, "not a line of JSON")]
    seen = 0

    def done() -> None:
        nonlocal seen
        seen += 1

    def kill() -> None:
        while seen < 40:
            time.sleep(0.05)
        (worker,) = cluster.worker_nodes
        cluster.remove_node(worker, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with Output(tmp_path / "out.jsonl", "w") as output:
        summary = map_rows_on_ray(flow, rows, output, address=cluster.address, concurrency=4, done=done)
    killer.join(10)
    assert not killer.is_alive()
    assert (summary.rows, summary.failed, summary.present) == (201, 1, 0)
    found = lines(tmp_path / "out.jsonl")
    assert sorted(line["_row"] for line in found) == list(range(201))
    assert all(line["double"] == 2 * line["n"] for line in found if "_error" not in line)


def test_what_is_there_is_not_done_again_and_no_node_is_asked_for_it(tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text(SLOW)
    with Output(tmp_path / "out.jsonl", "w") as output:
        output.append(0, {"n": 0, "double": 0})
        summary = map_rows_on_ray(tmp_path / "slow.yaml", [Row(0, {"n": 0})], output, concurrency=1)
    assert (summary.rows, summary.present) == (0, 1)
    assert not ray.is_initialized()


def test_an_actor_that_no_node_has_room_for_is_refused(tmp_path: Path, cluster: Any) -> None:
    (tmp_path / "slow.yaml").write_text(SLOW)
    rows, address = [Row(0, {"n": 0})], cluster.address
    with Output(tmp_path / "out.jsonl", "w") as output, pytest.raises(UsageError, match=r"no node .* has 64 cores"):
        map_rows_on_ray(tmp_path / "slow.yaml", rows, output, address=address, concurrency=1, cpus=64)
    assert lines(tmp_path / "out.jsonl") == []
