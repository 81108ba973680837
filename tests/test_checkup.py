"""What `reftune check` says of machines that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import start
from reftune.config import Config
from reftune.grading.sandbox import Sandbox
from reftune.planning.checkup import computing, connected, machine_check, software, surroundings
from reftune.planning.checkup.finding import Finding, fails, note, ok, shown
from reftune.planning.checkup.machine_check import PARTS, check_machine
from reftune.problem import Execution, UserError


def make_config(**sections: Any) -> Config:
    return Config.model_validate({"model": {"name": "some/model"}, **sections})


def test_a_finding_is_laid_out_in_columns() -> None:
    found = fails("disk", "there is no room at all in this place", "make some")
    assert shown(found, 45).splitlines() == [
        "fails  disk        there is no room at all in",
        "                   this place",
        "                   -> make some",
    ]
    assert all(len(line) <= 45 for line in shown(found, 45).splitlines())


def test_every_part_of_this_machine_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "unreachable", lambda address: "no network in tests")
    found = list(check_machine())
    assert [one.part for one in found if one.state == "fails"] == []
    assert {one.part for one in found} == set(PARTS)


def test_an_error_in_one_part_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Config | None) -> Any:
        raise OSError("driver says no\nand more")

    monkeypatch.setattr(
        machine_check, "PARTS", {"GPU": broken, "disk": lambda config: iter([ok("disk", "fine")])}
    )
    first, second = check_machine()
    assert (first.part, first.state) == ("GPU", "fails")
    assert first.what == "could not be examined (OSError: driver says no)"
    assert second == Finding("disk", "ok", "fine")


def test_the_command_tells_each_finding_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [ok("torch", "2.x"), note("GPU", "none", "buy one")]
    monkeypatch.setattr(machine_check, "check_machine", lambda config: iter(found))
    assert start(monkeypatch, "check") == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok     torch       2.x", "note   GPU         none", "                   -> buy one",
    ]  # fmt: skip
    found.append(fails("disk", "full", "make room"))
    assert start(monkeypatch, "check", "--json") == 1
    assert json.loads(capsys.readouterr().out)[-1] == {
        "part": "disk", "state": "fails", "what": "full", "fix": "make room",
    }  # fmt: skip


def test_a_container_that_grants_less_than_its_cores_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(computing, "CPU_LIMIT", limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert next(computing.threads(None)) == ok("threads", "8 on 8 cores")
    limit.write_text("max 100000\n")
    assert next(computing.threads(None)).state == "ok"
    limit.write_text("250000 100000\n")
    found = next(computing.threads(None))
    assert (found.state, "granted 2.5" in found.what) == ("note", True)
    assert found.fix.startswith("set compute.threads = 2,")
    assert next(computing.threads(make_config(compute={"threads": 2}))).state == "ok"
    limit.unlink()
    found = next(computing.threads(make_config(compute={"threads": 9})))
    assert (found.state, found.fix) == ("note", "set compute.threads = 8 or less")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_bfloat16_that_is_slower_than_float32_is_noted_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paces = {torch.float32: 10.0, torch.bfloat16: 5.0}
    monkeypatch.setattr(computing, "matrix_rate", lambda device, dtype: paces[dtype])
    wanted = make_config(model={"name": "some/model", "dtype": "bfloat16"})
    found = next(computing.precisions(wanted))
    assert (found.state, "0.5 times" in found.what) == ("note", True)
    assert next(computing.precisions(None)).state == "ok"
    paces[torch.bfloat16] = 30.0
    assert next(computing.precisions(wanted)).state == "ok"


def test_an_executor_that_calculates_wrongly_or_sees_files_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answers(right: Execution, spy: Execution) -> None:
        monkeypatch.setattr(Sandbox, "run", lambda self, programs: [right, spy])

    answers(Execution("ok", 42), Execution("exception"))
    assert next(surroundings.executor(None)).state == "ok"
    answers(Execution("ok", 41), Execution("exception"))
    found = next(surroundings.executor(None))
    assert (found.state, "41" in found.what) == ("fails", True)
    answers(Execution("ok", 42), Execution("ok", 12))
    assert next(surroundings.executor(None)).what == "a program could read a file"

    def none(self: Sandbox, programs: Any) -> Any:
        raise UserError("no worker starts")

    monkeypatch.setattr(Sandbox, "run", none)
    assert next(surroundings.executor(None)).what == "no worker starts"


def test_a_kernel_that_locks_nothing_in_fails_where_a_run_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = make_config(reward={"full_python": True})
    assert next(surroundings.full_python(wanted)).state == "ok"

    def missing() -> str:
        return "this kernel has no filters"

    monkeypatch.setattr("reftune.grading.sandbox.seccomp_missing", missing)
    found = next(surroundings.full_python(wanted))
    assert (found.state, missing() in found.what) == ("fails", True)
    assert next(surroundings.full_python(None)).state == "note"


def test_a_directory_that_cannot_be_written_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = make_config(output_dir=str(tmp_path / "not" / "yet"))
    assert next(surroundings.disk(below)).state == "ok"
    assert not (tmp_path / "not").exists(), "nothing is left behind"

    def refused(directory: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(surroundings, "_seconds_to_sync", refused)
    found = next(surroundings.disk(below))
    assert (found.state, "Permission denied" in found.what) == ("fails", True)
    monkeypatch.setattr(surroundings, "_seconds_to_sync", lambda directory: 3.0)
    found = next(surroundings.disk(below))
    assert (found.state, "3.0 s" in found.what) == ("note", True)


def test_packages_that_a_run_needs_and_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "find_spec", lambda name: None)
    first, second = software.extras(None)
    assert first.what == "beside the core: none"
    assert (second.state, second.fix) == (
        "note", "where you want them: pip install 'reftune[lora,gguf,8bit,gym,vllm]'",
    )  # fmt: skip
    [_, lora] = software.extras(make_config(lora={"rank": 8}))
    assert (lora.state, lora.fix) == ("fails", "pip install 'reftune[lora]'")
    assert "lora.rank = 8" in lora.what
    needed = make_config(
        model={"name": "a/b.gguf", "optimizer": "adamw_8bit"}, data={"train": "reasoning_gym:x"},
        compute={"sampler": "vllm"},
    )  # fmt: skip
    assert set(software.needs(needed)) == {"gguf", "bitsandbytes", "reasoning_gym", "vllm"}
    tested = make_config(data={"test_sources": ["reasoning_gym:x"]})
    assert set(software.needs(tested)) == {"reasoning_gym"}


def test_a_server_of_samples_that_does_not_answer_fails() -> None:
    [found] = software.sampler(make_config(compute={"sampler": "vllm"}))
    assert (found.state, found.what) == ("ok", 'in this process: compute.sampler = "vllm"')
    there = make_config(compute={"sampler": "vllm", "vllm_server": "127.0.0.1:1"})
    assert "vllm" not in software.needs(there)
    [found] = software.sampler(there)
    assert (found.state, "127.0.0.1:1 does not answer" in found.what) == ("fails", True)


def test_a_tracker_that_is_not_installed_fails_where_a_run_names_it() -> None:
    wanted = make_config(compute={"trackers": ["aim", "tensorboard"]})
    [found] = software.trackers(wanted)
    assert (found.state, found.what) == ("fails", "aim is not installed, and compute.trackers names it")
    [found] = software.trackers(None)
    assert (found.state, "tensorboard" in found.what) == ("ok", True)


def test_a_model_is_looked_for_on_the_disk_and_then_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in software.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(software, "unreachable", lambda address: "no route")
    assert next(software.model(make_config(model={"name": str(tmp_path)}))).state == "ok"
    assert next(software.model(None)).state == "note"
    assert next(software.model(make_config())).state == "fails"
    assert list(software.model(make_config(model={"scratch": "tiny"}))) == []
    monkeypatch.setattr(software, "unreachable", lambda address: "")
    assert next(software.model(make_config())).state == "ok"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in next(software.model(make_config())).what


def test_an_address_that_answers_with_an_error_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(error: Exception) -> None:
        def opened(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(software.urllib.request, "urlopen", opened)

    answer(urllib.error.HTTPError("http://x", 403, "no", {}, None))  # type: ignore[arg-type]
    assert software.unreachable("http://x") == ""
    answer(urllib.error.URLError("no such name"))
    assert software.unreachable("http://x") == "no such name"


def test_processes_that_do_not_find_each_other_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(connected, "ADD", "raise SystemExit('no way through')")
    found = next(connected.processes(None))
    assert (found.state, found.what) == ("note", "two cannot work together by gloo: no way through")
    monkeypatch.setattr(connected, "ADD", "import time; time.sleep(30)")
    monkeypatch.setattr(connected, "SECONDS", 0.5)
    assert "no answer in 0 s" in next(connected.processes(None)).what


def test_under_a_launcher_all_processes_are_counted() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["-m", "reftune", "check", "--json"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    last = json.loads(done.stdout)[-1]  # one process reports
    assert (last["part"], last["state"]) == ("processes", "ok")
    assert last["what"].startswith("2 found each other in ")
