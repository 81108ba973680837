"""The one engine of this process: stages that follow each other give it their weights in turn."""

import gc
import json
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from reftune.sampling.vllm.engine import VllmEngine
from reftune.sampling.vllm.sampler import EngineSettings

# Of a model's config.json, what does not say how it computes: exports of one model differ in it.
ASIDE = (
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "pad_token_id",
    "transformers_version", "use_cache",
)  # fmt: skip

_engines: list[VllmEngine] = []


def architecture_of(model: PreTrainedModel) -> str:
    """Return the config.json by which an engine builds models that compute like this one."""
    whole = json.loads(model.config.to_json_string(use_diff=False))
    kept = {key: value for key, value in whole.items() if key not in ASIDE}
    return json.dumps(kept | {"architectures": [type(model).__name__]}, sort_keys=True)


def colocated_engine(
    settings: EngineSettings, device: torch.device, memory: float, processes: int
) -> VllmEngine:
    """Return this process's engine: the one that is there if it fits, else a new one in its place.

    Args:
        settings: what it must be built for; an engine for longer texts does as well.
        device: the trainer's.
        memory: its share of the memory of a GPU.
        processes: that a launcher has connected.

    Raises UserError as `VllmEngine` does.
    """
    for engine in _engines:
        held = engine.settings
        if replace(held, longest=settings.longest) == settings and held.longest >= settings.longest:
            return engine
    close_engines()
    gpu = device.type == "cuda"
    engine = VllmEngine(settings, gpu=gpu, memory=memory, sleeps=gpu, launched=processes > 1)
    _engines.append(engine)
    return engine


def close_engines() -> None:
    """End this process's engine, if it has one."""
    while _engines:
        _engines.pop().close()
    gc.collect()
