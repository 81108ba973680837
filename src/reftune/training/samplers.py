"""Which engine draws samples from a policy, by the settings of this machine."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from reftune.config import Compute
from reftune.model.loading import response_ends
from reftune.model.lora import bare_name, plain_weights
from reftune.model.packing import position_limit
from reftune.model.policy import PolicyWithValue
from reftune.model.prompts import Prompter
from reftune.model.sharding import gathered_weights, sharded, whole_copy
from reftune.sampling.copied import CopySampler
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.sampler import Sampler
from reftune.sampling.vllm.client import RemoteEngine, ask_server
from reftune.sampling.vllm.colocated import architecture_of, close_engines, colocated_engine
from reftune.sampling.vllm.engine import require_vllm
from reftune.sampling.vllm.sampler import Engine, EngineSettings, VllmSampler
from reftune.training.stop_strings import stopped


def make_sampler(
    policy: PolicyWithValue,
    prompter: Prompter,
    accelerator: Accelerator,
    compute: Compute,
    stop: tuple[str, ...] = (),
) -> Sampler:
    """Return a sampler that has the weights of `policy` as they are now.

    Args:
        compute: says which engine, and how many responses it decodes at once.
        stop: texts behind which nothing counts: the built-in engine samples no further then.
    """
    if compute.sampler == "vllm":
        return _vllm(policy, prompter, accelerator, compute)
    whole = sharded(policy) is None
    return (BuiltinSampler if whole else CopySampler)(
        policy.policy if whole else whole_copy(policy, accelerator.device),
        response_ends(policy.policy, prompter.eos),
        compute.rows,
        packed_forward=policy.packed_forward,
        context=computing(accelerator),
        value_head=policy.value_head if policy.value_backbone is None else None,
        enough=stopped(prompter, stop),
    )


def current_weights(policy: PolicyWithValue) -> Iterable[tuple[str, Tensor]]:
    """Return the weights of a policy's language model as a sampler is sent them (all processes)."""
    return plain_weights(policy.policy) if sharded(policy) is None else gathered_weights(policy)


def check_sampler(compute: Compute) -> None:
    """Raise UserError where the engine that the settings name is not to be had: before it is needed."""
    if compute.sampler != "vllm":
        return
    if compute.vllm_server is None:
        require_vllm()
    else:
        ask_server(compute.vllm_server)


@contextmanager
def engines_closed() -> Iterator[None]:
    """Let this process's engine end with the block, before what connects the processes does."""
    try:
        yield
    finally:
        close_engines()


def computing(accelerator: Accelerator) -> Callable[[], AbstractContextManager[None]]:
    """Return what is entered around a model's forward passes, for mixed precision."""
    return nullcontext if accelerator.mixed_precision == "no" else accelerator.autocast


def computing_dtype(policy: PolicyWithValue, accelerator: Accelerator) -> torch.dtype:
    """Return the precision in which a policy's language model computes."""
    mixed = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision)
    parts = sharded(policy)
    return mixed or (policy.policy.dtype if parts is None else parts.dtype)


def _vllm(
    policy: PolicyWithValue, prompter: Prompter, accelerator: Accelerator, compute: Compute
) -> VllmSampler:
    model = policy.policy
    [name] = broadcast_object_list([VllmSampler.new_name()])  # the same for all processes
    sampler = VllmSampler(
        _engine(_settings(policy, prompter, accelerator, compute), accelerator, compute),
        response_ends(model, prompter.eos),
        tied_names(model),
        name,
    )
    sampler.update_weights(current_weights(policy))
    return sampler


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """Return, by the name of each weight that others are tied to, what these are called."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(bare_name(name))
    return {first: others for first, *others in names.values() if others}


def _settings(
    policy: PolicyWithValue, prompter: Prompter, accelerator: Accelerator, compute: Compute
) -> EngineSettings:
    dtype = computing_dtype(policy, accelerator)
    longest = prompter.settings.max_prompt_tokens + prompter.settings.max_new_tokens
    return EngineSettings(
        architecture_of(policy.policy),
        str(dtype).removeprefix("torch."),
        int(min(longest, position_limit(policy.policy.config))),
        compute.rows,
    )


def _engine(settings: EngineSettings, accelerator: Accelerator, compute: Compute) -> Engine:
    """Return the server's engine, where one is named, else this process's."""
    if compute.vllm_server is not None:
        return RemoteEngine(compute.vllm_server, settings, sends=accelerator.is_main_process)
    device, processes = accelerator.device, accelerator.num_processes
    return colocated_engine(settings, device, compute.vllm_gpu_memory, processes)
