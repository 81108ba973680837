"""Let any model go on with texts and chats as they are: without questions, rewards and verdicts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reftune.config import Config, Prompt
from reftune.evaluation.inference import check_temperature, model_config
from reftune.grading.reward_calls import reason_of
from reftune.model.chat import Chat
from reftune.model.loading import end_tokens, load_both, make_policy
from reftune.model.packing import position_limit
from reftune.model.prompts import Prompter, saved_settings
from reftune.problem import Completion, Problem, UserError, shown
from reftune.progress import counting
from reftune.runs.display import Display
from reftune.runs.run_dir import choose_model
from reftune.runs.setup import make_accelerator
from reftune.sampling.engine import BuiltinSampler
from reftune.sampling.sampler import Sample
from reftune.training.rollouts import sequence_seed

Turns = Sequence[Mapping[str, Any]]  # a chat: its messages
Prompts = str | Sequence[str | Turns]


def generate(
    model: str | Path,
    prompts: Prompts | Turns,
    *,
    n: int,
    temperature: float,
    top_p: float,
    stop: str | Sequence[str] | None,
    max_new_tokens: int | None,
    seed: int,
    overrides: Sequence[str],
) -> list[list[Completion]]:
    """Return `n` completions of each prompt; for the arguments see `reftune.generate`."""
    asked = _as_list(prompts)
    stops = [stop] if isinstance(stop, str) else list(stop or [])
    _check(n, temperature, top_p, stops, max_new_tokens)
    _, directory = choose_model(str(model))
    config = model_config(directory, overrides, cot="natural")  # kinds of chains say nothing here
    limit = config.prompt.max_new_tokens if max_new_tokens is None else max_new_tokens
    loaded, tokenizer = load_both(directory, config.model.eos_token, getattr(torch, config.model.dtype))
    ids = [_encode(tokenizer, asked[i], i, config) for i in range(len(asked))]
    _check_lengths(ids, limit, loaded)
    ends = _ends(loaded, tokenizer, directory, any(not isinstance(one, str) for one in asked))
    reader = _Reader(tokenizer, ends, stops)
    sampler = _sampler(loaded, config, ends, top_p, reader.enough if stops else None)
    with Display("generate", 1), counting("sampling", n * len(ids)):
        drawn = sampler.sample(
            [prompt for prompt in ids for _ in range(n)],
            [sequence_seed(seed, "generate", i, k) for i in range(len(ids)) for k in range(n)],
            max_new_tokens=limit,
            temperature=temperature,
        )
    found = [reader.completion(sample) for sample in drawn]
    return [found[i * n : (i + 1) * n] for i in range(len(ids))]


@dataclass(frozen=True)
class _Reader:
    """Makes completions of samples: up to a token that ends them, or a text that does."""

    tokenizer: PreTrainedTokenizerBase
    ends: Sequence[int]
    stops: Sequence[str]

    def completion(self, sample: Sample) -> Completion:
        """Return what a sample says; behind the first stop string nothing counts."""
        tokens, text = sample.tokens, self._text(sample.prompt, sample.tokens)
        ended = bool(tokens) and tokens[-1] in self.ends
        if places := [place for stop in self.stops if (place := text.find(stop)) >= 0]:
            text, ended = text[: min(places)], True
            tokens = tokens[: self._until_stopped(sample)]
        return Completion(text, tokens, sum(sample.logprobs[: len(tokens)]), ended)

    def enough(self, responses: list[list[int]]) -> list[bool]:
        """Tell which responses hold a stop string."""
        return [self._is_stopped([], tokens) for tokens in responses]

    def _until_stopped(self, sample: Sample) -> int:
        """Return how many tokens it takes to spell a stop string."""
        counts = range(len(sample.tokens))
        return bisect_left(
            counts, True, key=lambda m: self._is_stopped(sample.prompt, sample.tokens[:m])
        )

    def _is_stopped(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        text = self._text(prompt, tokens)
        return any(stop in text for stop in self.stops)

    def _text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Return what tokens spell behind a prompt, whose last one tells where a space belongs."""
        shown = [token for token in tokens if token not in self.ends]
        before, whole = self._decode(prompt[-1:]), self._decode([*prompt[-1:], *shown])
        return whole[len(before) :] if whole.startswith(before) else self._decode(shown)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


def _sampler(
    model: PreTrainedModel,
    config: Config,
    ends: Sequence[int],
    top_p: float,
    enough: Callable[[list[list[int]]], list[bool]] | None,
) -> BuiltinSampler:
    policy = make_policy(model, config.model, device=make_accelerator(config).device)
    rows, forward = config.compute.rows, policy.packed_forward
    return BuiltinSampler(policy.policy, ends, rows, packed_forward=forward, top_p=top_p, enough=enough)


def _as_list(prompts: Prompts | Turns) -> list[str | Turns]:
    """Return prompts as a list; a text or a chat alone is one."""
    if isinstance(prompts, str):
        return [prompts]
    many: list[Any] = list(prompts)
    return [many] if many and isinstance(many[0], Mapping) else many


def _encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Turns, i: int, config: Config
) -> list[int]:
    """Return the ids of prompt number `i`: as the tokenizer begins a text, or as its template writes."""
    place = f"prompt {i + 1}"
    if isinstance(prompt, str):
        plain = Prompter(tokenizer, Prompt(style="plain", template="{question}"), "natural")
        ids = plain.encode_prompt(Problem("", prompt, ""))
    elif not all(isinstance(turn, Mapping) for turn in prompt):
        raise UserError(f"{place}: give a text, or messages with role and content, not {shown(prompt)}")
    elif not tokenizer.chat_template:
        raise UserError(f"{place}: this model has no chat template; give a text in place of messages")
    else:
        how: dict[str, Any] = {"return_dict": False, **config.prompt.template_args}
        turns: Any = [dict(turn) for turn in prompt]
        try:
            written: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, **how)
            ids = list(written)
        except Exception as error:  # templates are programs, and fail in all ways
            told = f"the chat template fails ({reason_of(error)}); mend the messages, or give a text"
            raise UserError(f"{place}: {told}") from error
    if not ids:
        raise UserError(f"{place}: is empty; write what the model shall go on with")
    return ids


def _ends(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str, chats: bool
) -> list[int]:
    """Return the ids that end a completion: the model's, the tokenizer's, and a chat's."""
    ends = {*end_tokens(model), tokenizer.eos_token_id}
    if chats and not saved_settings(directory):  # one that we trained ends with its EOS alone
        ends.add(tokenizer.convert_tokens_to_ids(Chat(tokenizer, Prompt(style="chat")).turn_end()))
    return sorted(end for end in ends if isinstance(end, int))


def _check(
    n: int, temperature: float, top_p: float, stops: Sequence[str], max_new_tokens: int | None
) -> None:
    check_temperature(temperature)
    if n < 1:
        raise UserError(f"n: 1 or more completions per prompt, not {n}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p: above 0 and up to 1, not {top_p}")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError(f"max_new_tokens: 1 or more, not {max_new_tokens}")
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise UserError(f"stop: a text or a list of texts, none of them empty, not {shown(stops)}")


def _check_lengths(prompts: Sequence[Sequence[int]], limit: int, model: PreTrainedModel) -> None:
    positions = position_limit(model.config)
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) + limit > positions:
            raise UserError(
                f"prompt {number}: its {len(prompt)} tokens and max_new_tokens = {limit} exceed the"
                f" model's {positions} positions; lower max_new_tokens, or shorten it"
            )
