"""vLLM itself, in this process: beside the trainer on its device, asleep while the trainer works.

Whatever is particular to vLLM is here. Written for its versions 0.32 and 0.33; what was run of it was
run on a CPU, so sleeping and waking were not.
"""

import importlib.util
import os
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reftune.model.forward import first_line
from reftune.problem import UserError
from reftune.sampling.vllm.sampler import SETTING, Draw, Drawn, EngineSettings, checked

CPU_CACHE = 2**30  # bytes of keys and values on a CPU; on a GPU vLLM takes its share of the memory
BATCHED_TOKENS = 8192  # of prompts that are read at once, at least; whole prompts alone are read
SEEDS = 2**63 - 1  # vLLM's are not negative
DRAIN_SECONDS = 60.0  # that new weights wait for responses which nobody takes any more
EXTENSION = "reftune.sampling.vllm.worker.WeightsFromFiles"
# Read by vLLM when it is imported; what the user has set stays.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's own loop in this process
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def require_vllm() -> None:
    """Raise UserError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            f'{SETTING}: vLLM is not installed; `pip install "reftune[vllm]"`, or name a server that has'
            " it (compute.vllm_server), or leave the key out"
        )


class VllmEngine:
    """vLLM in this process; threads may share it, and their responses are drawn together.

    Args:
        settings: what it is built for.
        gpu: whether it works on one.
        memory: its share of the GPU's memory.
        sleeps: whether it leaves that memory to others while it draws nothing.
        launched: whether this process is one of several that a launcher has connected; each has an
            engine of its own.
        gpus: over how many it is spread (tensor parallelism).
        options: others of `vllm.LLM`.

    Raises UserError where vLLM is missing or cannot run this architecture.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        gpu: bool,
        memory: float = 0.9,
        sleeps: bool = False,
        launched: bool = False,
        gpus: int = 1,
        **options: Any,
    ) -> None:
        require_vllm()
        self.settings, self.version = settings, ""
        self.devices = [torch.cuda.current_device()] if gpu else []  # whose random numbers it uses
        self.sleeps, self.launched = sleeps, launched
        self.asleep: set[str] = set()
        self.lock = threading.RLock()  # whoever has it steps the engine for all
        self.arrived: dict[str, Any] = {}  # finished responses that nobody has taken yet
        given = self._options(gpu, memory) | ({"tensor_parallel_size": gpus} if gpus > 1 else {})
        if launched:
            given["distributed_executor_backend"] = "external_launcher"
        with _same_process_after(self.devices):
            self.llm = _build(settings.architecture, given | options)
        self._sleep()

    def _options(self, gpu: bool, memory: float) -> dict[str, Any]:
        """Return how vLLM is built; weights come later, and texts stay outside."""
        settings = self.settings
        machine: dict[str, Any] = {"gpu_memory_utilization": memory, "enable_sleep_mode": self.sleeps}
        if not gpu:  # there per-request seeds fail where prompts are read in chunks
            machine = {"kv_cache_memory_bytes": CPU_CACHE, "enforce_eager": True}
            machine["enable_chunked_prefill"] = False
        return {
            "load_format": "dummy", "skip_tokenizer_init": True,
            "generation_config": "vllm", "dtype": settings.dtype, "max_model_len": settings.longest,
            "max_num_seqs": settings.rows, "seed": 0, "logprobs_mode": "processed_logprobs",
            "max_num_batched_tokens": max(BATCHED_TOKENS, settings.longest, settings.rows),
            "worker_extension_cls": EXTENSION, **machine,
        }  # fmt: skip

    def load(self, weights: Iterable[tuple[str, Tensor]], version: str) -> None:
        """Take over weights that lie in this process (see `Engine.load`)."""
        self._load("reload_weights", {"weights_iterator": iter(weights)}, version)

    def load_files(self, directory: Path, version: str) -> None:
        """Take over the weights in the safetensors files of a directory, wherever the workers are."""
        self._load("reload_files", {"directory": str(directory)}, version)

    def _load(self, method: str, given: dict[str, Any], version: str) -> None:
        with self._drained():
            self.version = ""  # until all is there
            self._wake("weights")
            self.llm.collective_rpc(method, kwargs=given)
            if not self.llm.reset_prefix_cache():  # or responses would follow the old weights
                raise RuntimeError("vLLM still holds keys and values of the old weights")
            self.version = version

    def draw(self, draw: Draw, version: str) -> Iterator[Drawn]:
        """Draw responses (see `Engine.draw`)."""
        for drawn in self.steps(draw, version):
            yield from drawn

    def steps(self, draw: Draw, version: str) -> Generator[list[Drawn], None, None]:
        """Do the same step by step, of which most finish nothing.

        Raises UserError where the engine holds other weights.
        """
        with self.lock:
            checked(version, self.version, "this process's engine")
            self._wake("weights", "kv_cache")
            waiting = self._ask(draw)
        try:
            while waiting:
                with self.lock:
                    if not waiting.keys() & self.arrived.keys():
                        self._step()
                    ready = waiting.keys() & self.arrived.keys()
                    found = [_drawn(waiting.pop(key), self.arrived.pop(key)) for key in ready]
                yield found
        finally:
            with self.lock:
                self._forget(list(waiting))
                if not self.llm.llm_engine.has_unfinished_requests():
                    self._sleep()

    def close(self) -> None:
        """Give back what the engine holds."""
        core = self.llm.llm_engine.engine_core
        if self.launched:  # a whole shutdown would take the trainer's connections to the others, too
            core._finalizer.detach()
            core.engine_core.model_executor.shutdown()
        else:
            core.shutdown()

    def _ask(self, draw: Draw) -> dict[str, int]:
        """Hand all prompts over; return the number of each by the name of its request."""
        from vllm.inputs import tokens_input

        name, requests = uuid.uuid4().hex, {}
        for i, (prompt, seed) in enumerate(zip(draw.prompts, draw.seeds, strict=True)):
            params = _params(draw, seed)
            self.llm.llm_engine.add_request(f"{name}-{i}", tokens_input(prompt), params)
            requests[f"{name}-{i}"] = i
        return requests

    def _step(self) -> None:
        with torch.random.fork_rng(devices=self.devices):  # it draws from the trainer's, too
            outputs = self.llm.llm_engine.step()
        self.arrived |= {output.request_id: output for output in outputs if output.finished}

    def _forget(self, requests: list[str]) -> None:
        """Drop requests that are not wanted any more, as after an interruption."""
        if requests:
            self.llm.llm_engine.abort_request(requests)
            for key in requests:
                self.arrived.pop(key, None)

    @contextmanager
    def _drained(self) -> Iterator[None]:
        """Hold the engine while it draws nothing; wait for that a while."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while True:
            with self.lock:
                if not self.llm.llm_engine.has_unfinished_requests():
                    yield
                    return
            if time.monotonic() > deadline:
                raise UserError(f"{SETTING}: new weights have come while others are still sampled from")
            time.sleep(0.05)

    def _wake(self, *tags: str) -> None:
        if needed := [tag for tag in tags if tag in self.asleep]:
            torch.cuda.empty_cache()  # what the trainer has freed
            self.llm.wake_up(tags=needed)
            self.asleep -= set(needed)

    def _sleep(self) -> None:
        """Leave the memory to others: weights go to the CPU's, keys and values are dropped."""
        if self.sleeps:
            self.llm.sleep(level=1)
            self.asleep = {"weights", "kv_cache"}


def _build(architecture: str, options: dict[str, Any]) -> Any:
    try:
        from vllm import LLM

        with tempfile.TemporaryDirectory(prefix="reftune-vllm-") as place:
            Path(place, "config.json").write_text(architecture, encoding="utf-8")
            return LLM(place, **options)
    except Exception as error:  # whatever vLLM may raise
        raise UserError(
            f"{SETTING}: vLLM cannot run this model here: {first_line(error)}; leave the key out"
        ) from error


def _params(draw: Draw, seed: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=draw.temperature, max_tokens=draw.max_new_tokens, seed=seed & SEEDS,
        stop_token_ids=draw.ends, ignore_eos=True, logprobs=0, detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip


def _drawn(index: int, output: Any) -> Drawn:
    [found] = output.outputs
    tokens = list(found.token_ids)
    said = [row[token].logprob for token, row in zip(tokens, found.logprobs, strict=True)]
    return Drawn(index, tokens, said)


@contextmanager
def _same_process_after(devices: list[int]) -> Iterator[None]:
    """Let vLLM's start change nothing of a process that is not its own.

    It seeds all random numbers, sets the number of threads and takes the means to set it, and leaves in
    the environment what sandboxes and rewards would inherit.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    before, set_threads, threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    python, numpy = random.getstate(), np.random.get_state()
    if not devices:  # a compiler's minutes for operations of microseconds
        torch._dynamo.config.disable = True
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(python)
        np.random.set_state(numpy)
        for name in set(os.environ) - set(before):
            if not name.startswith("VLLM_"):
                del os.environ[name]
        os.environ.update(before)
