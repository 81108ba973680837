"""As much of vLLM as our engine uses, with its traps, on a transformers model: for tests without it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from reftune.sampling.vllm.worker import WeightsFromFiles

FINAL_ONLY = "final only"


class Worker(WeightsFromFiles):
    """Holds the model; its head is a copy, even where the model's is the embedding."""

    def __init__(self, directory: str) -> None:
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory)).eval()
        self.head = self.model.lm_head.weight.detach().clone()

    def reload_weights(self, weights_iterator: Any) -> None:
        for name, weight in weights_iterator:
            if name == "lm_head.weight":
                self.head = weight.detach().clone()
            self.model.state_dict()[name].copy_(weight.detach())


class Request:
    def __init__(self, prompt: list[int], params: Any) -> None:
        self.prompt, self.params, self.tokens = prompt, params, list[int]()
        self.logprobs: list[dict[int, Any]] = []

    @property
    def finished(self) -> bool:
        return len(self.tokens) == self.params.max_tokens or (
            bool(self.tokens) and self.tokens[-1] in self.params.stop_token_ids
        )


class FakeLLM:
    """`vllm.LLM`: each step draws a token of every request; prompts that it has read stay in a cache."""

    newest: FakeLLM

    def __init__(self, model: str, **options: Any) -> None:
        FakeLLM.newest = self
        torch.manual_seed(options["seed"])
        self.options, self.worker = options, Worker(model)
        self.requests: dict[str, Request] = {}
        self.cache: dict[tuple[int, ...], torch.Tensor] = {}
        self.calls: list[Any] = []  # in order
        self.steps = 0
        self.llm_engine = self
        self.engine_core = SimpleNamespace(shutdown=lambda: self.calls.append("shutdown"))

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.calls.append(method)
        getattr(self.worker, method)(**kwargs)

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        self.cache.clear()
        return not self.requests

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake", *tags))

    def add_request(self, name: str, prompt: Any, params: Any) -> None:
        self.requests[name] = Request(prompt["prompt_token_ids"], params)

    def abort_request(self, names: list[str]) -> None:
        self.calls.append(f"abort {len(names)}")
        for name in names:
            self.requests.pop(name, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    @torch.no_grad()
    def step(self) -> list[Any]:
        self.steps += 1
        torch.rand(1)  # of the process's random numbers
        for request in self.requests.values():
            self._draw(request)
        ended = [name for name, request in self.requests.items() if request.finished]
        return [_output(name, self.requests.pop(name)) for name in ended]

    def _draw(self, request: Request) -> None:
        params = request.params
        text = (*request.prompt, *request.tokens)
        if text not in self.cache or request.tokens:
            states = self.worker.model.model(input_ids=torch.tensor([text])).last_hidden_state
            self.cache[text] = states[0, -1] @ self.worker.head.T
        logprobs = (self.cache[text] / (params.temperature or 1.0)).log_softmax(-1)
        generator = torch.Generator().manual_seed(params.seed + len(text))
        drawn = torch.multinomial(logprobs.exp(), 1, generator=generator)
        token = int(drawn if params.temperature else logprobs.argmax())
        request.tokens.append(token)
        request.logprobs.append({token: SimpleNamespace(logprob=float(logprobs[token]))})


def _output(name: str, request: Request) -> Any:
    found = SimpleNamespace(token_ids=tuple(request.tokens), logprobs=request.logprobs)
    return SimpleNamespace(request_id=name, finished=True, outputs=[found])


def install(patch: pytest.MonkeyPatch) -> None:
    """Let `import vllm` find this one."""
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.inputs", "vllm.sampling_params")}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
        patch.setitem(sys.modules, name, module)
    vllm: Any = modules["vllm"]
    vllm.LLM, vllm.SamplingParams = FakeLLM, SimpleNamespace
    modules["vllm.inputs"].tokens_input = lambda ids: {"prompt_token_ids": ids}  # type: ignore[attr-defined]
    kinds = SimpleNamespace(FINAL_ONLY=FINAL_ONLY)
    modules["vllm.sampling_params"].RequestOutputKind = kinds  # type: ignore[attr-defined]
