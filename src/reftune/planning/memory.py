"""Where the memory of a stage goes, in bytes, by calculation.

A stage has two moments that may be its fullest: an update, when gradients, activations and logits are
there, and drawing samples, when the sampler's cache is; with asynchronous rollouts they are one.
Weights, masters and the optimizer's moments stay throughout.
"""

import math

from reftune.config import Config
from reftune.model.policy import LOGITS_PER_CHUNK, LOGITS_PER_CHUNK_ON_GPU
from reftune.planning.machine import Machine
from reftune.planning.shapes import Shape
from reftune.planning.workload import Draw, StageWork, has_own_critic
from reftune.sampling.decoders import PREFILL_TOKENS
from reftune.sampling.static_batch import BYTES_PER_LOGIT, round_up
from reftune.sampling.vllm.engine import CPU_CACHE
from reftune.training.cpu_threads import replica_count

FLOAT = 4
VLLM_ASLEEP = 1e9  # what it keeps of a GPU: kernels and graphs; assumed, for none was at hand
CHUNK_COPIES = 3  # logits, log-probabilities, and what an entropy or a gradient takes
BYTES_PER_LOGIT_ON_CPU = 4 * FLOAT  # logits, probabilities, their sums, and what is chosen among

Items = dict[str, float]  # what it is for -> bytes


def memory(work: StageWork, shape: Shape, config: Config, machine: Machine) -> dict[str, Items]:
    """Return what a stage holds at each of its moments: "update" (where it learns) and "sampling".

    Of a model in parts the main process of a CPU also has "saving".

    Args:
        machine: a GPU's memory is not taken by what rests in the CPU's; on a CPU replicas learn.
    """
    moments: dict[str, Items] = {}
    always = kept(work, shape, config, machine)
    if work.learns:
        moments["update"] = always | _update(work, shape, config, machine)
    resting = {
        name: size for name, size in always.items() if name != "gradients"
    }  # dropped by each step
    if in_parts(work, config, machine) and not machine.gpu:  # of a GPU's run it is the CPU's memory
        moments["saving"] = resting | {"gathered checkpoint": 3 * FLOAT * shape.trained}
    if draws := [draw for draw in (work.draws, work.validates) if draw]:
        fullest = max((sampling(draw, shape, config, machine) for draw in draws), key=total)
        moments["sampling"] = resting | fullest
        if work.name == "ppo" and config.ppo.async_rollouts:  # the engine reads a copy meanwhile
            builtin = config.compute.sampler == "builtin"
            copied = {"copy that samples": shape.weights * shape.bytes_each} if builtin else {}
            moments["update"] = _together(moments["update"], fullest | copied)
    return moments


def _together(one: Items, other: Items) -> Items:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in one | other}


def gib(amount: float) -> str:
    """Return bytes as people read them, in GiB."""
    return f"{amount / 2**30:.2f}"


def total(items: Items) -> float:
    """Return the sum of all items."""
    return sum(items.values())


def kept(work: StageWork, shape: Shape, config: Config, machine: Machine) -> Items:
    """Return what a stage holds whatever it reads; for the arguments see `memory`."""
    if in_parts(work, config, machine):
        return _kept_in_parts(work, shape, config, machine)
    own = _own_critic(work, shape, config)
    items: Items = {"weights": shape.weights * shape.bytes_each + own * shape.trained_bytes}
    if work.learns:
        trained = shape.trained + own
        if shape.trained_bytes < FLOAT:
            items["masters"] = trained * FLOAT
        items["gradients"] = trained * FLOAT * replicas(shape, machine)
        items["optimizer"] = trained * (2 if config.model.optimizer == "adamw_8bit" else 8)
        if machine.processes > 1:  # where DDP adds gradients up
            items["gradients to exchange"] = trained * shape.trained_bytes
    if _has_reference(work, shape, config, machine):
        items["reference"] = shape.weights * shape.bytes_each
    return items | _vllm_at_rest(shape, config, machine)


def _own_critic(work: StageWork, shape: Shape, config: Config) -> int:
    """Return the numbers that a critic of its own adds to what a stage trains."""
    return shape.critic if has_own_critic(work.name, config) else 0


def _has_reference(work: StageWork, shape: Shape, config: Config, machine: Machine) -> bool:
    """Tell whether a frozen copy lies beside the model: not that of an adapter, nor one on the CPU."""
    rests_elsewhere = machine.gpu and config.compute.offload_reference
    return work.reference and not shape.adapted and not rests_elsewhere


def in_parts(work: StageWork, config: Config, machine: Machine) -> bool:
    """Tell whether each process of a stage holds a part of the model; those that only ask hold all."""
    return bool(work.learns) and machine.processes > 1 and config.compute.sharding != "none"


def _kept_in_parts(work: StageWork, shape: Shape, config: Config, machine: Machine) -> Items:
    """Return what a process holds of a model in parts (see `model.sharding`); adapters stay whole."""
    share = 1 / machine.processes
    own = _own_critic(work, shape, config)
    learning = (shape.trained + own) * FLOAT * (1 if shape.adapted else share)
    frozen = shape.weights if shape.adapted else 0
    items: Items = {
        "weights": learning + frozen * shape.bytes_each * share,
        "gradients": learning,
        "optimizer": 2 * learning,
    }
    if _has_reference(work, shape, config, machine):
        items["reference"] = shape.weights * shape.bytes_each * share
    if not work.name.startswith("reranker") and config.compute.sampler == "builtin":
        items["copy that samples"] = shape.weights * shape.bytes_each
    return items | _vllm_at_rest(shape, config, machine)


def _gathered(shape: Shape) -> Items:
    """Return what is whole for a moment of an update: two layers, what is outside, and gradients."""
    whole = shape.outside + 2 * shape.of_a_layer
    learns = 0 if shape.adapted else shape.outside + shape.of_a_layer
    return {
        "gathered weights": whole * shape.bytes_each,
        "gathered gradients": learns * (shape.bytes_each + FLOAT),
    }


def _has_vllm(config: Config) -> bool:
    """Tell whether vLLM works in this process."""
    return config.compute.sampler == "vllm" and config.compute.vllm_server is None


def _vllm_at_rest(shape: Shape, config: Config, machine: Machine) -> Items:
    """Return what vLLM holds while it draws nothing: on a CPU it does not sleep."""
    if not _has_vllm(config):
        return {}
    return {"vLLM": VLLM_ASLEEP if machine.gpu else shape.weights * shape.bytes_each + CPU_CACHE}


def activation_bytes(shape: Shape, config: Config, stage: str) -> float:
    """Return what backward needs of each token that was read, by the policy and a critic of its own."""
    kept: float = shape.activation_bytes
    if config.compute.gradient_checkpointing:  # the states between layers, and the inside of one
        kept = shape.layers * shape.width * shape.bytes_each + shape.activation_bytes / shape.layers
    return kept * (2 if has_own_critic(stage, config) else 1)


def chunk_bytes(machine: Machine) -> int:
    """Return what the logits that are computed at once take, at most."""
    return CHUNK_COPIES * FLOAT * (LOGITS_PER_CHUNK_ON_GPU if machine.gpu else LOGITS_PER_CHUNK)


def replicas(shape: Shape, machine: Machine) -> int:
    """Return how many replicas learn side by side."""
    if machine.gpu or shape.trained_bytes < FLOAT or machine.processes > 1:
        return 1
    return replica_count(shape.trained, machine.threads)


def _update(work: StageWork, shape: Shape, config: Config, machine: Machine) -> Items:
    count = replicas(shape, machine)
    logits = CHUNK_COPIES * FLOAT * work.targets * shape.vocabulary
    items: Items = {
        "activations": work.microbatch * activation_bytes(shape, config, work.name) * count,
        "logits": min(logits, chunk_bytes(machine)) * count,
        **_float32_head(shape, config, copies=count * (1 if shape.adapted else 2)),
    }
    if in_parts(work, config, machine):
        return items | _gathered(shape)
    # The largest weight's gradient is computed beside the sum that it is added to.
    return items | {"working space": shape.largest_trained * FLOAT * count}


def _float32_head(shape: Shape, config: Config, copies: int) -> Items:
    """Return what `model.float32_head` takes beside weights of 16 bits; a gradient is a copy, too."""
    size = FLOAT * shape.vocabulary * shape.width * copies
    return {"head in float32": size} if config.model.float32_head else {}


def sampling(draw: Draw, shape: Shape, config: Config, machine: Machine) -> Items:
    """Return what drawing samples takes beside what a stage keeps."""
    if config.compute.sampler == "vllm":
        awake = _has_vllm(config) and machine.gpu
        return {"vLLM": config.compute.vllm_gpu_memory * machine.memory} if awake else {}
    rows = min(draw.rows, config.compute.rows)
    prompts = min(draw.questions, math.ceil(rows / draw.samples))  # as wide as the longest of them
    tokens = prompts * draw.longest_prompt + rows * draw.longest
    if machine.gpu:  # each row has its prompt for itself (see `sampling.static_batch`)
        tokens = rows * round_up(draw.longest_prompt + draw.longest)
    items: Items = {"cache": tokens * shape.cache_bytes}
    # The inside of one layer, while prompts are read.
    read = min(PREFILL_TOKENS, prompts * draw.longest_prompt)
    items["working space"] = read * shape.activation_bytes / shape.layers
    each = BYTES_PER_LOGIT if machine.gpu else BYTES_PER_LOGIT_ON_CPU
    items["logits"] = rows * shape.vocabulary * each
    items |= _float32_head(shape, config, copies=1)
    if shape.adapted and draw.learning:
        items["merged weights"] = shape.adapted * shape.bytes_each
    return items
