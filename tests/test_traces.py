from __future__ import annotations

import torch

from made_rollouts import graded_sample, make_rollouts
from reftune.stages.traces import traced
from reftune.training.rollouts import graded_rows
from reftune.training.types import AdvantagesAndReturns, Rollouts
from tiny_stage import PROMPTER


def estimates(
    advantages: list[list[float]], values: list[list[float]] | None = None
) -> AdvantagesAndReturns:
    found = torch.tensor(advantages, dtype=torch.float64)
    said = torch.zeros_like(found) if values is None else torch.tensor(values, dtype=torch.float64)
    return AdvantagesAndReturns(found, found, found, said, found)


def rollouts(reference: list[list[float]] | None, values: list[list[float]] | None) -> Rollouts:
    graded = [graded_sample("p", [7, 8], 1.0), graded_sample("p", [9], 0.0)]
    made = make_rollouts(graded, [[-1.0, -2.0], [-0.25]], reference=reference, values=values)
    if reference is None:
        return Rollouts(
            **{name: getattr(made, name) for name in made.__slots__} | {"ref_logprobs": None}
        )
    return made


def test_each_token_is_logged_with_its_numbers_and_padding_is_not() -> None:
    made = rollouts([[-1.5, -1.0], [-0.25]], [[8.0, 8.0], [8.0]])  # of the head alone
    targets = estimates([[1.0, 2.0], [-3.0, 9.0]], [[0.5, 0.75], [0.123456, 9.0]])
    rows = graded_rows(traced(PROMPTER, made, targets, 5))
    found = [{key: row[key] for key in row if key not in graded_rows(made.samples)[0]} for row in rows]  # type: ignore[literal-required]
    assert [one.pop("tokens") for one in found] == [PROMPTER.spell([7, 8]), PROMPTER.spell([9])]
    assert found == [
        {
            "logprobs": [-1.0, -2.0], "log_ratios": [0.5, -1.0], "values": [0.5, 0.75],
            "advantages": [1.0, 2.0],
        },
        {"logprobs": [-0.25], "log_ratios": [0.0], "values": [0.1235], "advantages": [-3.0]},
    ]  # fmt: skip


def test_only_so_many_samples_are_logged_and_without_what_there_is_not() -> None:
    (one,) = traced(PROMPTER, rollouts(None, None), estimates([[1.0, 2.0], [3.0, 0.0]]), 1)
    assert set(one.trace) == {"tokens", "logprobs", "advantages"}  # no reference, no critic
    assert traced(PROMPTER, rollouts(None, None), estimates([[1.0, 2.0], [3.0, 0.0]]), 0) == []


def test_what_nobody_judged_has_tokens_and_no_numbers() -> None:
    graded = [graded_sample("p", [7, 8], 0.0, status="sandbox_error"), graded_sample("p", [9], 1.0)]
    lost, _ = traced(PROMPTER, make_rollouts(graded, [[-1.0, -2.0], [-0.5]]), estimates([[0.0]] * 2), 2)
    assert lost.trace == {"tokens": PROMPTER.spell([7, 8])}


def test_the_texts_of_tokens_add_up_to_the_text_and_show_what_ends_it() -> None:
    for text in ("what is it? it is", " é€ 🙂 so", "12  +\n3"):
        ids = PROMPTER.tokenizer.encode(text)
        spelled = PROMPTER.spell(ids)
        assert len(spelled) == len(ids)
        assert "".join(spelled) == text
    ids = PROMPTER.tokenizer.encode("€")
    assert len(ids) == 3  # bytes
    assert PROMPTER.spell(ids) == ["", "", "€"]
    assert PROMPTER.spell([PROMPTER.eos]) == [PROMPTER.tokenizer.eos_token]
