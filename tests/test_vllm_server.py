"""The server of samples and its client, over a real port; behind it the stand-in for vLLM."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load

import fake_vllm
from fake_vllm import FakeLLM
from reftune.config import Compute
from reftune.model.lora import plain_weights
from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.sampling.vllm import client, server, wire
from reftune.sampling.vllm.client import RemoteEngine, ask_server, parsed
from reftune.sampling.vllm.engine import VllmEngine
from reftune.sampling.vllm.sampler import VllmSampler
from reftune.sampling.vllm.server import STALE, SampleServer
from reftune.training.samplers import check_sampler, make_sampler
from test_vllm_sampler import ENDS, PROMPTS, SEEDS, draw, gap, settings_of, tied_model
from tiny_stage import PROMPTER

TIED = {"model.embed_tokens.weight": ["lm_head.weight"]}


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)


@contextmanager
def serving() -> Iterator[tuple[SampleServer, str]]:
    """Yield a server that answers at an address."""
    served = SampleServer(("127.0.0.1", 0), lambda settings: VllmEngine(settings, gpu=False))
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield served, f"127.0.0.1:{served.server_port}"
    finally:
        served.shutdown()
        served.server_close()
        thread.join(timeout=10)


def engine_at(address: str, *, sends: bool = True, longest: int = 32) -> RemoteEngine:
    return RemoteEngine(address, settings_of(tied_model(), longest), sends=sends)


def test_samples_from_elsewhere_are_those_of_an_engine_here() -> None:
    model, other = tied_model(), tied_model(seed=1)
    here = VllmSampler(VllmEngine(settings_of(model), gpu=False), ENDS, TIED)
    with serving() as (served, address):
        there = VllmSampler(engine_at(address), ENDS, TIED)
        for weights in (model, other, model):
            for sampler in (here, there):
                sampler.update_weights(plain_weights(weights))
            assert draw(there) == draw(here)
            assert gap(weights, draw(there)) < 1e-4
        assert list(served.files.iterdir()) == []


def test_weights_travel_in_files_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PART_BYTES", 40)
    head = torch.arange(8.0).view(2, 4)
    weights = [("a", head), ("b", torch.ones(3)), ("c", torch.tensor([5])), ("head", head)]
    files = [load(part) for part in wire.parts(weights, "bfloat16")]
    assert [sorted(file) for file in files] == [["a", "b", "c"], ["head"]]
    assert torch.equal(files[0]["a"], head.bfloat16())
    assert torch.equal(files[1]["head"], head.bfloat16())
    assert files[0]["c"].dtype == torch.int64


def test_many_files_make_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PART_BYTES", 5000)
    model = tied_model()
    with serving() as (_, address):
        sampler = VllmSampler(engine_at(address), ENDS, TIED)
        sampler.update_weights(plain_weights(model))
        assert gap(model, draw(sampler)) < 1e-4


def test_weights_whose_sender_has_died_are_thrown_away_when_others_come() -> None:
    with serving() as (served, _):
        lost, coming = served.begin("lost"), served.begin("coming")
        then = time.time() - STALE - 1
        os.utime(lost, (then, then))
        assert served.begin("next").is_dir()
        assert (lost.exists(), coming.exists()) == (False, True)


def test_another_process_waits_for_the_weights_that_the_first_one_sends() -> None:
    model = tied_model()
    found: list[Any] = []
    with serving() as (_, address):
        first = VllmSampler(engine_at(address), ENDS, TIED, "run")
        second = VllmSampler(engine_at(address, sends=False), ENDS, TIED, "run")
        weights = iter(list(plain_weights(model)))
        second.update_weights(weights)
        assert list(weights) == [], "gathering them may need all processes"
        thread = threading.Thread(target=lambda: found.append(draw(second)))
        thread.start()
        time.sleep(0.3)
        assert not found
        first.update_weights(plain_weights(model))
        thread.join(timeout=30)
        assert found == [draw(first)]


def test_a_server_that_was_started_anew_is_no_silent_fault() -> None:
    model = tied_model()
    with serving() as (served, address):
        sampler = VllmSampler(engine_at(address), ENDS, TIED, "a")
        sampler.update_weights(plain_weights(model))
        rival = VllmSampler(engine_at(address), ENDS, TIED, "b")
        rival.update_weights(plain_weights(model))
        with pytest.raises(UserError, match="its weights are not this run's"):
            draw(sampler)
        served.engine = None
        with pytest.raises(UserError, match="its weights are not this run's"):
            draw(rival)
        with pytest.raises(UserError, match="has no engine yet, for it was started anew"):
            rival.update_weights(plain_weights(model))


def test_an_engine_for_something_else_is_refused() -> None:
    with serving() as (_, address):
        engine_at(address)
        engine_at(address)
        with pytest.raises(UserError, match="was built for another model or other lengths; start it an"):
            engine_at(address, longest=99)


def test_a_model_that_vllm_cannot_run_is_told_to_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakeLLM, model: str, **options: Any) -> None:
        raise ValueError("no such architecture")

    monkeypatch.setattr(FakeLLM, "__init__", refuse)
    with serving() as (_, address), pytest.raises(UserError, match="says: vLLM cannot run this model"):
        engine_at(address)


def test_a_trainer_that_leaves_ends_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server notices where it has something to say, if only a blank line."""
    monkeypatch.setattr(server, "BEAT_SECONDS", 0.0)
    step = FakeLLM.step

    def slowly(self: FakeLLM) -> list[Any]:
        time.sleep(0.01)
        return step(self)

    monkeypatch.setattr(FakeLLM, "step", slowly)
    with serving() as (served, address):
        monkeypatch.setattr(served, "handle_error", lambda request, place: None)
        sampler = VllmSampler(engine_at(address, longest=128), ENDS, TIED)
        sampler.update_weights(plain_weights(tied_model()))
        asked = {"prompts": PROMPTS, "seeds": SEEDS, "ends": [10**6], "max_new_tokens": 10**5}
        body = json.dumps(asked | {"temperature": 1.0, "version": sampler.version})
        connection = HTTPConnection("127.0.0.1", served.server_port)
        connection.request("POST", "/draw", body)
        assert connection.getresponse().read(1) == b"\n"
        assert FakeLLM.newest.requests
        connection.close()
        deadline = time.monotonic() + 20
        while FakeLLM.newest.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not FakeLLM.newest.requests


def test_a_server_that_fails_while_it_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FakeLLM) -> list[Any]:
        raise RuntimeError("out of memory")

    with serving() as (served, address):
        monkeypatch.setattr(served, "handle_error", lambda request, place: None)
        sampler = VllmSampler(engine_at(address), ENDS, TIED)
        sampler.update_weights(plain_weights(tied_model()))
        monkeypatch.setattr(FakeLLM, "step", fail)
        with pytest.raises(UserError, match=r"the server at 127.0.0.1:\d+ has stopped while it sampled"):
            draw(sampler)


def test_a_server_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (served, address):
        monkeypatch.setattr(served, "handle_error", lambda request, place: None)
        sampler = VllmSampler(engine_at(address), ENDS, TIED)
        sampler.update_weights(plain_weights(tied_model()))
        monkeypatch.setattr(FakeLLM, "step", lambda self: time.sleep(1.0) or [])
        monkeypatch.setattr(client, "DRAW_SECONDS", 0.2)
        with pytest.raises(UserError, match=r"does not answer \(timed out\); start `reftune serve`"):
            draw(sampler)


def test_nobody_at_the_address() -> None:
    with serving() as (_, address):
        pass
    for act in (
        lambda: engine_at(address),
        lambda: ask_server(address),
        lambda: check_sampler(Compute(sampler="vllm", vllm_server=address)),
    ):
        with pytest.raises(UserError, match=f"the server at {address} does not answer"):
            act()


def test_the_token_must_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (_, address):
        monkeypatch.setenv(wire.TOKEN, "secret")
        ask_server(address)  # both read it anew
        monkeypatch.setattr(client, "authorization", lambda: "Bearer guess")
        for act in (lambda: ask_server(address), lambda: engine_at(address)):
            with pytest.raises(
                UserError, match="says: REFTUNE_VLLM_TOKEN is not the same on both sides"
            ):
                act()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("gpu2:81", ("gpu2", 81)), ("http://gpu2", ("gpu2", 8300)), ("[::1]:9", ("::1", 9))],
)
def test_addresses(given: str, expected: tuple[str, int]) -> None:
    assert parsed(given) == expected


@pytest.mark.parametrize("given", ["", ":8300", "host:many", "ftp://host:1"])
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(
        UserError, match=f'compute.vllm_server: "{given}" is no address; write host:port'
    ):
        parsed(given)


def test_a_policys_sampler_asks_the_server_that_the_settings_name() -> None:
    policy = PolicyWithValue(tied_model())
    with serving() as (_, address):
        compute = Compute(sampler="vllm", vllm_server=address)
        sampler = make_sampler(policy, PROMPTER, Accelerator(cpu=True), compute)
        samples = sampler.sample(PROMPTS, SEEDS, max_new_tokens=3, temperature=1.0)
    assert gap(policy.policy, samples, temperature=1.0) < 1e-4
