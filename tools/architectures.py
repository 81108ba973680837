"""Try every causal language model of transformers: do trainer and sampler say what the model says?

    python tools/architectures.py                    # all of them: some minutes
    python tools/architectures.py llama gemma3       # these

Each is built tiny, with random weights (`tiny_configs.py`), in a process of its own with limits of
memory and time. What reftune says is compared with what a copy of the model says of one text at a time,
without padding, packing or a cache, on prompts of different length whose samples fork and end at
different times, within the model's window and beyond it:

- log-probabilities of `PolicyWithValue` on a batch, and the gradient of a random weighting of them;
- log-probabilities that samples of `BuiltinSampler` carry at temperature 1;
- its greedy text.

Prints a Markdown table of how each is used: packed (prompts and beginnings are read once), padded, or
refused with a sentence; and by how much log-probabilities differ at most, of the trainer or the sampler.
The exit code is 1 if something is WRONG or fails otherwise than by a sentence.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import resource
import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
import transformers
from tiny_configs import VARIANTS, tiny_config
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from reftune.config import Model
from reftune.model.batch import collate
from reftune.model.loading import make_policy
from reftune.model.policy import PolicyWithValue
from reftune.problem import UserError
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.sampler import Sample

MOST_PARAMETERS = 5e6
MEMORY = 8 * 2**30
SECONDS = 120.0
EXACT = 1e-4  # of log-probabilities in float32
TOLERANCE = 5e-3  # of gradients, sums over all tokens; and of a greedy token's distance from the best
# What is compared with the model's own pass over the whole text; `CACHED` with one by its cache.
READ, SAMPLED = "log-probabilities of the trainer", "log-probabilities of the sampler"
CACHED, OTHERS = "log-probabilities of the sampler beside the model's cache", ("gradient", "greedy text")
PROMPT_LENGTHS = {"short": ((2, 1, 3), 3), "long": ((3, 11, 1, 7), 12)}  # and tokens to sample
SAMPLES = 4  # of each prompt
ROWS = 7  # decoded at once: fewer than there are, so that some enter when others leave
ENDS = list(range(1, 13))  # tokens that end a response: many, or random samples never end


class Result(NamedTuple):
    """How an architecture is used, and whether that is in order."""

    use: str
    right: bool = True
    gap: float | None = None  # the largest of a log-probability


def main() -> None:
    """Try the architectures that are named, or all; print the table."""
    quiet()
    kinds = sys.argv[1:] or sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS])
    print("| model type | use | largest gap |\n| --- | --- | --- |")
    right = True
    for kind in kinds:
        result = try_apart(kind)
        right = right and result.right
        gap = "" if result.gap is None else f"{result.gap:.0e}"
        print(f"| {kind} | {result.use} | {gap} |", flush=True)
    sys.exit(not right)


def quiet() -> None:
    """Let neither libraries nor threads get in the way."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    torch.set_num_threads(1)


def try_apart(kind: str) -> Result:
    """Try one architecture in a process of its own: it may eat memory, hang or crash."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(kind, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(SECONDS):
            return Result(f"WRONG: not done after {SECONDS:.0f} s", right=False)
        result: Result = ours.recv()
        return result
    except EOFError:
        return Result("WRONG: the process crashed", right=False)
    finally:
        process.kill()
        process.join()


def _child(kind: str, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # it lives as long as the process
    try:
        model = build(kind)
    except Exception as error:  # whatever transformers raises
        answer.send(Result(f"could not be built tiny: {_gist(error)}"))
        return
    try:
        answer.send(try_model(model))
    except UserError as error:
        answer.send(Result(f"refused: {error}"))
    except Exception as error:
        answer.send(Result(f"WRONG: {type(error).__name__}: {_gist(error)}", right=False))


def build(kind: str) -> PreTrainedModel:
    """Return a tiny model with random weights, biases among them, that reads a text."""
    config = tiny_config(kind)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() < 2:  # biases and norms, which begin as 0 or 1
            parameter.data += 0.1 * torch.randn_like(parameter)
    with torch.no_grad():
        model(input_ids=torch.tensor([[13, 14, 15, 16]]))
    return model


def try_model(model: PreTrainedModel) -> Result:
    """Compare what reftune says with what the model says alone; raises UserError if it is refused."""
    plain = copy.deepcopy(model)
    policy = make_policy(model, Model(name="tiny"), critic=True, trainable=True)
    sampler = BuiltinSampler(policy.policy, ENDS, ROWS, packed_forward=policy.packed_forward)
    found = {
        name: distances(policy, sampler, plain, make_prompts(lengths), new)
        for name, (lengths, new) in PROMPT_LENGTHS.items()
    }
    own = any(row[SAMPLED] > EXACT for row in found.values())  # then its cache must be as far
    judged = (READ, CACHED if own else SAMPLED, *OTHERS)
    faults = [
        f"{what}: {row[what]:.1e} off ({name})"
        for name, row in found.items()
        for what in judged
        if not row[what] <= (TOLERANCE if what in OTHERS else EXACT)  # nor is nan
    ]
    if faults:
        return Result(f"WRONG: {'; '.join(faults)}", right=False)
    gap = max(max(row[READ], row[SAMPLED]) for row in found.values())
    packs, shares = policy.packed_forward.supports_packing, sampler.shares_prompts
    ways = {(True, True): "packed", (True, False): "packed in training, padded in sampling"}
    remark = "; its own cache says something else than the whole text, too" if own else ""
    return Result(ways.get((packs, shares), "padded") + remark + _unreached(policy), gap=gap)


def _unreached(policy: PolicyWithValue) -> str:
    """Return a remark if some weight got no gradient: with several processes training then stops."""
    named = policy.policy.named_parameters()
    left = [name for name, p in named if p.requires_grad and p.grad is None]
    return f"; no text reaches {len(left)} weights ({left[0]})" if left else ""


def make_prompts(lengths: Sequence[int]) -> list[list[int]]:
    """Return prompts of these lengths, each several times."""
    generator = torch.Generator().manual_seed(1)
    distinct = [torch.randint(13, 60, (n,), generator=generator).tolist() for n in lengths]
    return [prompt for prompt in distinct for _ in range(SAMPLES)]


def distances(
    policy: PolicyWithValue,
    sampler: BuiltinSampler,
    plain: PreTrainedModel,
    prompts: list[list[int]],
    new: int,
) -> dict[str, float]:
    """Return by how much trainer and sampler differ from the plain model, in several things."""
    samples, greedy = (
        sampler.sample(prompts, range(len(prompts)), max_new_tokens=new, temperature=t)
        for t in (1.0, 0.0)
    )
    expected = [read_alone(plain, s.prompt, s.tokens) for s in samples]
    trained = policy(collate([s.prompt for s in samples], [s.tokens for s in samples])).logprobs
    weights = [torch.randn(len(row), generator=torch.Generator().manual_seed(2)) for row in expected]
    drawn = [torch.tensor(s.logprobs) for s in samples]
    by_cache = [read_by_cache(plain, s.prompt, s.tokens) for s in samples]
    read = [row[: len(other)] for row, other in zip(trained, expected, strict=True)]
    return {
        READ: _distance(read, expected),
        SAMPLED: _distance(drawn, expected),
        CACHED: _distance(drawn, by_cache),
        OTHERS[0]: _gradient_distance(policy.policy, plain, read, expected, weights),
        OTHERS[1]: max(greedy_distance(plain, s, new) for s in greedy),
    }


def read_alone(plain: PreTrainedModel, prompt: list[int], response: list[int]) -> Tensor:
    """Return the log-probability of each token of a response, read as one text."""
    logits = plain(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(response)), response]


@torch.no_grad()
def read_by_cache(plain: PreTrainedModel, prompt: list[int], response: list[int]) -> Tensor:
    """Return the same from the model's own cache, a token at a time: some round far otherwise there."""
    found, cache, ids = [], None, torch.tensor([prompt])
    for token in response:
        output = plain(input_ids=ids, past_key_values=cache, use_cache=True)
        found.append(output.logits[0, -1].log_softmax(-1)[token])
        cache, ids = output.past_key_values, torch.tensor([[token]])
    return torch.stack(found)


def greedy_distance(plain: PreTrainedModel, sample: Sample, new: int) -> float:
    """Return by how much a greedy sample misses the likeliest token anywhere, reading anew for each."""
    missed = 0.0
    for i, token in enumerate(sample.tokens):
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([sample.prompt + sample.tokens[:i]])).logits[0, -1]
        missed = max(missed, float(logits.max() - logits[token]))
    ended = len(sample.tokens) == new or sample.tokens[-1] in ENDS
    return missed if ended else float("inf")


def _gradient_distance(
    ours: PreTrainedModel,
    plain: PreTrainedModel,
    read: list[Tensor],
    expected: list[Tensor],
    weights: list[Tensor],
) -> float:
    """Return how far the gradients of weighted sums are apart, as a share of the plain one's length."""
    for rows, model in ((read, ours), (expected, plain)):
        model.zero_grad()
        torch.stack([row @ weight for row, weight in zip(rows, weights, strict=True)]).sum().backward()
    error = norm = 0.0
    for parameter, other in zip(ours.parameters(), plain.parameters(), strict=True):
        a, b = (torch.zeros(()) if p.grad is None else p.grad for p in (parameter, other))
        error, norm = error + float((a - b).square().sum()), norm + float(b.square().sum())
    return (error / max(norm, 1e-20)) ** 0.5


def _distance(ours: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return float((torch.cat(list(ours)) - torch.cat(list(others))).detach().abs().max())


def _gist(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0]} {lines[-1].strip()}"[:200] if len(lines) > 1 else lines[0][:200]


if __name__ == "__main__":
    main()
