from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from reftune.files import atomic_directory, atomic_file, read_json, write_json
from reftune.launcher import tell_once
from reftune.model.policy import PolicyWithValue
from reftune.model.saving import save_policy
from reftune.model.scratch import train_tokenizer
from reftune.problem import UserError
from reftune.runs.checkpoints import load_checkpoint, remove_checkpoints, save_checkpoint
from tiny_models import tiny_model


class Training:
    """A tiny model in training whose steps depend on random generators.

    Python's own is left out: the type checks that run under pytest draw from it.
    """

    def __init__(self) -> None:
        self.accelerator = Accelerator(cpu=True)
        policy = PolicyWithValue(tiny_model(), "shared")
        groups = [{"params": list(policy.parameters()), "lr": 1e-2, "peak": 1e-2}]
        self.model, self.optimizer = self.accelerator.prepare(policy, torch.optim.AdamW(groups))

    def steps(self, count: int) -> list[float]:
        """Take optimizer steps; return the random numbers they used."""
        drawn = []
        for _ in range(count):
            drawn += [float(np.random.rand()), float(torch.rand(()))]
            for i, parameter in enumerate(self.model.parameters()):
                parameter.grad = torch.randn_like(parameter) + drawn[-1] * i
            self.optimizer.step()
        return drawn

    def weights(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]


def killed(work: Callable[[], None]) -> bool:
    """Run `work` in a child process; tell whether it died of SIGKILL."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    return child.exitcode == -signal.SIGKILL


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class DeadlyList(list[int]):
    """Kills the process that writes it."""

    def __iter__(self) -> NoReturn:
        die()


deadly = {"a": DeadlyList([1])}  # as a state, which is written when the weights are


def test_a_resumed_training_goes_on_exactly_where_the_other_went(tmp_path: Path) -> None:
    training = Training()
    training.steps(2)
    save_checkpoint(training.accelerator, tmp_path, 2, {"best": 0.5, "names": ["a"]})
    expected_numbers, expected = training.steps(3), training.weights()

    resumed = Training()
    resumed.steps(1)
    assert load_checkpoint(resumed.accelerator, tmp_path) == {"step": 2, "best": 0.5, "names": ["a"]}
    assert resumed.optimizer.param_groups[0]["peak"] == 1e-2
    assert resumed.steps(3) == expected_numbers
    assert all(torch.equal(a, b) for a, b in zip(resumed.weights(), expected, strict=True))


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [100]), (2, [10, 100]), (3, [9, 10, 100]), (9, [8, 9, 10, 100])]
)
def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    training = Training()
    for step in (8, 9, 10, 100):
        training.steps(1)
        save_checkpoint(training.accelerator, tmp_path, step, {"step": -1, "note": f"at {step}"}, keep)
    names = [f"step-{step:08d}" for step in left]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == names
    assert load_checkpoint(training.accelerator, tmp_path) == {"step": 100, "note": "at 100"}
    remove_checkpoints(tmp_path)
    assert os.listdir(tmp_path) == []
    assert load_checkpoint(training.accelerator, tmp_path) is None
    remove_checkpoints(tmp_path)


def test_a_crash_before_the_rename_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    training = Training()
    assert killed(lambda: save_checkpoint(training.accelerator, tmp_path, 1, deadly))
    assert load_checkpoint(training.accelerator, tmp_path) is None
    training.steps(1)
    save_checkpoint(training.accelerator, tmp_path, 1, {})
    expected = training.weights()
    training.steps(1)
    assert killed(lambda: save_checkpoint(training.accelerator, tmp_path, 2, deadly))
    left = sorted(os.listdir(tmp_path / "checkpoints"))
    assert left == [".step-00000002.partial", "step-00000001"]
    assert (tmp_path / "checkpoints" / left[0] / "model.safetensors").exists()

    training.steps(1)
    assert load_checkpoint(training.accelerator, tmp_path) == {"step": 1}
    assert all(torch.equal(a, b) for a, b in zip(training.weights(), expected, strict=True))
    save_checkpoint(training.accelerator, tmp_path, 2, {})  # the same step again
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000001", "step-00000002"]


def test_what_killed_starts_have_left_half_written_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    training = Training()
    for step in (3, 4):  # after another number of steps each
        assert killed(lambda step=step: save_checkpoint(training.accelerator, tmp_path, step, deadly))
    save_checkpoint(training.accelerator, tmp_path, 5, {})
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000005"]


def test_a_directory_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"

    def write(content: str, end: Callable[[], None] = lambda: None) -> None:
        with atomic_directory(target) as directory:
            (directory / "sub").mkdir()
            (directory / "sub" / content).write_text(content)
            end()

    assert killed(lambda: write("first", die))
    assert not target.exists()
    write("second")
    assert killed(lambda: write("third", die))
    with pytest.raises(KeyboardInterrupt):
        write("fourth", interrupt)
    assert os.listdir(target / "sub") == ["second"]
    write("fifth")
    assert os.listdir(target / "sub") == ["fifth"]
    assert os.listdir(target.parent) == ["model"]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result.json"

    def write(content: str, end: Callable[[], None]) -> None:
        with atomic_file(target) as temporary:
            temporary.write_text(content)
            end()

    write_json(target, {"a": [1, 2.5, "ü", None]})
    assert killed(lambda: write("half", die))
    with pytest.raises(KeyboardInterrupt):
        write("half", interrupt)
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert read_json(target) == {"a": [1, 2.5, "ü", None]}
    write_json(target, [])
    assert read_json(target) == []
    assert os.listdir(target.parent) == ["result.json"]


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MB; skip the test where that is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # weights may still be mapped


# 1 kB is not enough for the weights (70 kB), 100 kB not for the optimizer (140 kB)
@pytest.mark.parametrize("free", [1, 100])
def test_a_full_disk_is_named_and_costs_nothing(free: int, small_disk: Path) -> None:
    training = Training()
    training.steps(1)
    save_checkpoint(training.accelerator, small_disk, 1, {})
    expected = training.weights()
    fill(small_disk, free)
    training.steps(1)
    with pytest.raises(UserError, match=f"^{small_disk}.* the disk is full; free some space"):
        save_checkpoint(training.accelerator, small_disk, 2, {})
    assert load_checkpoint(training.accelerator, small_disk) == {"step": 1}
    assert all(torch.equal(a, b) for a, b in zip(training.weights(), expected, strict=True))
    (small_disk / "filler").unlink()
    save_checkpoint(training.accelerator, small_disk, 2, {})
    assert load_checkpoint(training.accelerator, small_disk) == {"step": 2}


def test_a_disk_too_full_for_a_model_is_named_and_keeps_the_old_one(small_disk: Path) -> None:
    policy, target = PolicyWithValue(tiny_model()), small_disk / "model"

    def save() -> None:
        with atomic_directory(target) as directory:
            save_policy(policy, directory)

    save()
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    fill(small_disk, 20)
    with pytest.raises(UserError, match=f"^{small_disk}.* the disk is full; free some space"):
        save()
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_other_faults_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot write this"), atomic_directory(tmp_path / "model"):
        raise RuntimeError("cannot write this")


def fill(disk: Path, free: int) -> None:
    """Leave `free` kB on the disk."""
    state = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(state.f_bavail * state.f_frsize - free * 1024 // 4096 * 4096))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zeros(path: Path) -> None:  # as after a power cut, of a file system that keeps sizes
    path.write_bytes(bytes(path.stat().st_size))


CHANGED = "{} is not what was written there"
DAMAGES = [
    ("state.json", truncated, CHANGED),
    ("state.json", directory, CHANGED),
    ("state.json", Path.unlink, CHANGED),
    ("state.json", lambda path: void(path.write_text('{"step": 1}')), CHANGED),
    ("model.safetensors", truncated, CHANGED),
    ("model.safetensors", one_bit, CHANGED),
    ("model.safetensors", Path.unlink, CHANGED),
    ("optimizer.bin", zeros, CHANGED),
    ("optimizer.bin", one_bit, CHANGED),
    ("random_states_0.pkl", truncated, CHANGED),
    ("checksums.json", truncated, "{}:3: not JSON ("),
    ("checksums.json", Path.unlink, "{}: cannot be read ("),
]


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_word(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    training = Training()
    training.steps(1)
    save_checkpoint(training.accelerator, tmp_path, 1, {"best": 0.5})
    expected = training.weights()
    training.steps(1)
    save_checkpoint(training.accelerator, tmp_path, 2, {"best": 0.5})
    newest = tmp_path / "checkpoints/step-00000002"
    damage(newest / name)
    tell_once.cache_clear()
    assert load_checkpoint(training.accelerator, tmp_path) == {"step": 1, "best": 0.5}
    assert all(torch.equal(a, b) for a, b in zip(training.weights(), expected, strict=True))
    told = capfd.readouterr().err
    assert told.startswith(f"reftune: {newest}: is passed over, {words.format(name)}")
    assert told.count("\n") == 1
    assert newest.exists(), "until there is a newer one"


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_damaged_checkpoint_gives_way_to_the_next_whole_one(tmp_path: Path, step: int) -> None:
    """Whether the stage writes its next one before, at, or behind the damaged one."""
    training = Training()
    for number in (1, 3):
        save_checkpoint(training.accelerator, tmp_path, number, {})
    truncated(tmp_path / "checkpoints/step-00000003/model.safetensors")
    assert load_checkpoint(training.accelerator, tmp_path) == {"step": 1}
    save_checkpoint(training.accelerator, tmp_path, step, {})
    left = sorted(os.listdir(tmp_path / "checkpoints"))
    assert f"step-{step:08d}" in left
    assert step == 4 or left == ["step-00000001", f"step-{step:08d}"]
    assert load_checkpoint(training.accelerator, tmp_path) == {"step": step}


def test_without_a_whole_checkpoint_nothing_is_thrown_away(tmp_path: Path) -> None:
    training = Training()
    for number in (1, 3):
        save_checkpoint(training.accelerator, tmp_path, number, {})
        truncated(tmp_path / f"checkpoints/step-0000000{number}/optimizer.bin")
    place = tmp_path / "checkpoints"
    fix = f"delete {place}, and the stage begins anew"
    with pytest.raises(UserError) as told:
        load_checkpoint(training.accelerator, tmp_path)
    words = f"{place}: none is whole (optimizer.bin is not what was written there); {fix}"
    assert str(told.value) == words
    assert len(os.listdir(place)) == 2


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    training, other = Training(), Accelerator(cpu=True)
    save_checkpoint(training.accelerator, tmp_path, 2, {})
    model = other.prepare(torch.nn.Linear(2, 2))
    other.prepare(torch.optim.AdamW(model.parameters()))
    with pytest.raises(UserError, match=r"step-00000002: cannot be loaded \(RuntimeError: .*; delete "):
        load_checkpoint(other, tmp_path)


def void(_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("error", "words"),
    [  # as tokenizers, safetensors and Python itself tell them
        (Exception("No space left on device (os error 28)"), "the disk is full; free some space"),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), "the disk is full"),
        (
            Exception("Read-only file system (os error 30)"),
            "(Read-only file system (os error 30)); choose",
        ),
        (PermissionError(13, "Permission denied", "x"), "Permission denied: 'x'); choose another place"),
        (ValueError("embedded null byte"), "(embedded null byte); choose another place"),
    ],
)
def test_whatever_keeps_a_model_from_being_written_is_told(
    tmp_path: Path, error: Exception, words: str
) -> None:
    with pytest.raises(UserError) as told, atomic_directory(tmp_path / "model"):
        raise error
    assert str(told.value).startswith(f"{tmp_path / 'model'}: cannot be written")
    assert words in str(told.value)


def test_a_tokenizer_that_no_longer_fits_on_the_disk_is_named(small_disk: Path) -> None:
    tokenizer = train_tokenizer(["7 + 8 = 15"] * 9, 300)

    def save() -> None:
        with atomic_directory(small_disk / "model") as directory:
            fill(small_disk, 1)
            tokenizer.save_pretrained(directory)

    with pytest.raises(UserError, match=f"^{small_disk}/model: cannot be written, the disk is full"):
        save()
