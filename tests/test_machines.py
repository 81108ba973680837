"""Two machines, here network namespaces: one of them dies and comes back, or its cable is cut."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from child import Child
from precision import CLOSE

pytestmark = pytest.mark.slow
NAMES, CABLES = ("reftune-a", "reftune-b"), ("cable-a", "cable-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[None]:
    """Make two network namespaces with a cable between them; skip the test where that is not allowed."""
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", CABLES[0], "type", "veth", "peer", "name", CABLES[1])
        for name, cable, address in zip(NAMES, CABLES, ADDRESSES, strict=True):
            ip("link", "set", cable, "netns", name)
            for words in (
                f"addr add {address}/24 dev {cable}",
                f"link set {cable} up",
                "link set lo up",
            ):
                ip("-n", name, *words.split())
    except (OSError, subprocess.CalledProcessError):
        remove()
        pytest.skip("no right to make network namespaces")
    yield
    remove()


def remove() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Node:
    """One machine's torchrun with a process of a run, as recipes/several_machines.slurm starts it."""

    def __init__(self, index: int, out: Path, arguments: list[str]) -> None:
        self.index, self.out = index, out
        launcher = [
            "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--max_restarts=0",
            "--rdzv_id=1", "--rdzv_backend=c10d", f"--rdzv_endpoint={ADDRESSES[0]}:29511",
            f"--local_addr={ADDRESSES[index]}", f"--rdzv_conf=is_host={int(index == 0)}",
        ]  # fmt: skip
        program = [str(Path(__file__).with_name("precision.py")), *arguments]
        told = {
            "GLOO_SOCKET_IFNAME": CABLES[index], "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with out.open("ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", NAMES[index], sys.executable, "-m", *launcher, *program],
                stdout=log, stderr=log, env={**os.environ, **told}, start_new_session=True,
            )  # fmt: skip

    def die(self) -> None:
        """Kill all that runs on this machine at once."""
        pids = subprocess.run(
            ["ip", "netns", "pids", NAMES[self.index]], check=True, capture_output=True, text=True
        )
        for pid in pids.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        self.process.wait(10)

    def finish(self, seconds: float) -> int:
        return self.process.wait(seconds)

    def told(self) -> str:
        return self.out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of one process; its configuration is two folders above."""
    folder = tmp_path_factory.mktemp("machines")
    config = str(tiny_run.write_config(folder))
    Child("reftune", "run", config, "--name", "whole", float64=True).finish(seconds=1200)
    return folder / "runs/whole"


def start(whole: Path, name: str) -> list[Node]:
    config = str(whole.parents[1] / "tiny.toml")
    arguments = ["run", config, "--name", name, "--set", f"start_from={whole}", "--set", "ppo.steps=6"]
    logs = [whole.parents[1] / f"{name}-{index}.log" for index in (0, 1)]
    return [Node(index, log, arguments) for index, log in enumerate(logs)]


def wait_for_steps(run: Path, count: int, nodes: list[Node]) -> None:
    until = time.monotonic() + 900
    while len(metrics(run)) < count:
        assert time.monotonic() < until
        assert all(one.process.poll() is None for one in nodes), [one.told() for one in nodes]
        time.sleep(0.02)


def metrics(run: Path) -> list[dict[str, Any]]:
    path = run / "ppo/metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("index", [0, 1])
def test_where_a_machine_dies_the_other_ends_and_the_same_start_goes_on(
    machines: None, whole: Path, index: int
) -> None:
    name, run = f"died{index}", whole.parent / f"died{index}"
    nodes = start(whole, name)
    wait_for_steps(run, 2, nodes)
    nodes[index].die()
    assert nodes[1 - index].finish(60) != 0
    nodes = start(whole, name)
    assert [one.finish(900) for one in nodes] == [0, 0], [one.told() for one in nodes]
    for a, b in zip(metrics(whole), metrics(run), strict=True):
        for key in ("loss", "reward", "kl", "entropy"):
            assert b[key] == pytest.approx(a[key], abs=CLOSE, rel=CLOSE), (a["step"], key)
    assert max(row["reward"] for row in metrics(run)) > 0.3, "there is what to compare"
    assert "ppo: goes on behind step" in nodes[0].told()


@pytest.mark.parametrize("index", [0, 1])
def test_a_cut_cable_ends_both_machines_within_a_minute(machines: None, whole: Path, index: int) -> None:
    """No connection is closed then, and without signs of life each would wait for two hours."""
    name, run = f"cut{index}", whole.parent / f"cut{index}"
    nodes = start(whole, name)
    wait_for_steps(run, 2, nodes)
    ip("-n", NAMES[index], "link", "set", CABLES[index], "down")
    began = time.monotonic()
    sentences = (
        "gives no sign of life; the same",
        "is gone, or its machine; the same",
        "without a word",
    )
    while not all(any(x in one.told() for x in sentences) for one in nodes):
        assert time.monotonic() < began + 60, [one.told() for one in nodes]
        time.sleep(0.1)
    for one in nodes:
        one.die()
