from __future__ import annotations

import threading

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import reftune.training.cpu_threads
from reftune.training.cpu_threads import CpuThreads, make_cpu_threads, replicas
from tiny_models import tiny_model


def test_pieces_run_side_by_side_and_come_back_in_order() -> None:
    met = threading.Barrier(3, timeout=20)  # breaks unless three are at work at once

    def work(piece: int) -> int:
        met.wait()
        return piece * 10

    assert CpuThreads(3).map(work, [3, 1, 2]) == [30, 10, 20]


def test_each_thread_has_operations_of_so_many_threads() -> None:
    assert CpuThreads(2, 1).map(lambda _: torch.get_num_threads(), range(4)) == [1, 1, 1, 1]


def test_one_thread_is_the_calling_one() -> None:
    assert (
        CpuThreads().map(lambda _: threading.current_thread(), range(2)) == [threading.main_thread()] * 2
    )


def test_an_error_in_a_thread_is_the_callers() -> None:
    def work(piece: int) -> int:
        if piece == 2:
            raise ValueError("piece 2")
        return piece

    with pytest.raises(ValueError, match="piece 2"):
        CpuThreads(2).map(work, range(5))


def test_copies_share_weights_but_not_gradients() -> None:
    model = tiny_model(tie_word_embeddings=True)
    model, other = replicas(model, 2)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(3.0)
    assert (other.get_output_embeddings().weight == 3.0).all()  # tied, and to the same memory
    other(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(p.grad is not None for p in other.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_large_models_and_other_precisions_get_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        model = nn.Linear(10, 10, bias=False)
        accelerator = Accelerator(cpu=True)
        assert make_cpu_threads(model, accelerator).count == 4
        monkeypatch.setattr(reftune.training.cpu_threads, "PARAMETERS_IN_REPLICAS", 250)
        assert make_cpu_threads(model, accelerator).count == 2
        frozen = nn.Linear(10, 10, bias=False).requires_grad_(False)  # has no gradients to make room for
        assert make_cpu_threads(nn.Sequential(model, frozen), accelerator).count == 2
        monkeypatch.setattr(reftune.training.cpu_threads, "PARAMETERS_IN_REPLICAS", 99)
        assert make_cpu_threads(model, accelerator).count == 1
        monkeypatch.undo()
        accelerator.state._mixed_precision = "bf16"
        assert make_cpu_threads(model, accelerator).count == 1
    finally:
        torch.set_num_threads(threads)
        accelerator.state._mixed_precision = "no"
