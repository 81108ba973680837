"""The reranker: where it reads, what it learns, how it scores; and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from precision import CLOSE, float64
from reftune.config import Config, Data, Model, Prompt
from reftune.grading.judge import make_judge
from reftune.model.prompts import Prompter
from reftune.model.scratch import train_tokenizer
from reftune.problem import Problem, Row, UserError
from reftune.stages.reranker import Reranker, classify, labelled, rank, run_reranker
from reftune.stages.stage import Stage
from reftune.stages.supervised import Example
from tiny_models import tiny_model

PROBLEMS = [Problem(str(i), f"what is {i}?", str(i)) for i in range(6)]
TOKENIZER = train_tokenizer(["what is it? Question: Answer reasoning: yes no"], 300)
PROMPTER = Prompter(TOKENIZER, Prompt(), "natural")


def sample(i: int, completion: str, correct: bool, status: str = "ok") -> Row:
    return {"id": str(i), "completion": completion, "correct": correct, "status": status}


def trained_head(model: str = "llama") -> Reranker:
    reranker = Reranker(tiny_model(model)).eval()
    torch.nn.init.normal_(reranker.class_head.weight)
    return reranker


@pytest.mark.parametrize("model", ["llama", "gpt2", "opt"])
@float64()
def test_the_head_reads_the_state_before_the_last_token(model: str) -> None:
    reranker = trained_head(model)
    examples: list[Example] = [([3, 4, 5], [6, 7, 1]), ([8], [9, 1]), ([3, 4, 5], [1])]
    expected = []
    for prompt, response in examples:
        ids = torch.tensor([prompt + response[:-1]])
        with torch.no_grad():
            state = reranker.backbone(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
            logits = reranker.class_head(state)
        expected.append(float(1 / (1 + math.exp(float(logits[0] - logits[1])))))
    for budget in (4, 1000):  # whatever is cut and padded together
        assert classify(reranker, examples, Accelerator(cpu=True), budget) == pytest.approx(
            expected, abs=CLOSE
        )


def test_an_untrained_head_calls_it_even() -> None:
    assert classify(Reranker(tiny_model()), [([3], [4, 1])], Accelerator(cpu=True), 9) == [0.5]


def test_whole_samples_of_the_problems_are_labelled() -> None:
    samples = {
        "0": [sample(0, "yes", True), sample(0, "no", False), sample(0, "nonono", False, "truncated")],
        "1": [sample(1, "yes" * 99, True)],
        "5": [sample(5, "no", False)],
    }
    found = labelled(PROMPTER, PROBLEMS[:2], samples, 40)
    expected = [(PROMPTER.encode_example(PROBLEMS[0], text), text == "yes") for text in ("yes", "no")]
    assert found == expected


def make_stage(folder: Path) -> Stage:
    settings = {"epochs": 6, "batch_size": 4, "learning_rate": 3e-3, "head_learning_rate": 1e-2}
    config = Config(
        output_dir=str(folder), model=Model(scratch="tiny"), data=Data(cot="natural"),
        reranker=settings,  # type: ignore[arg-type]
    )  # fmt: skip
    judge = make_judge("natural", trigger="", partial_reward=0.0)
    name = "reranker/sft"
    return Stage(name, config, PROMPTER, judge, PROBLEMS[:4], PROBLEMS[4:], Accelerator(cpu=True))


def test_it_learns_to_tell_right_from_wrong_and_is_read_back(tmp_path: Path) -> None:
    samples = {p.id: [sample(0, "yes", True), sample(0, "no", False)] for p in PROBLEMS}
    stage = make_stage(tmp_path)
    result = run_reranker(stage, Reranker(tiny_model(vocab_size=300)), samples)
    assert result["examples"] == 8
    assert result["right_examples"] == 4
    assert result["best_validation_auc"] == 1.0  # on questions that it has not seen
    assert result["best_validation_loss"] < math.log(2) / 2
    loaded = Reranker(tiny_model(seed=3, vocab_size=300)).eval()
    loaded.load(stage.directory / "model")
    drawn = [{"completion": "yes", "value": 1.0}, {"completion": "no", "value": 2.0}]
    rows = [{"samples": [*drawn, {"completion": "no", "value": None}, dict(drawn[0])]}]
    rank(loaded, PROMPTER, PROBLEMS[5:], rows, Accelerator(cpu=True), 1000)
    yes, no, without_answer, again = (row["rerank"] for row in rows[0]["samples"])
    assert yes > 0.5 > no
    assert (without_answer, again) == (None, yes)


@pytest.mark.parametrize(
    ("correct", "message"),
    [(True, "all 4 samples of the warm-up model are right"), (False, "are wrong")],
)
def test_without_both_kinds_there_is_nothing_to_learn(
    tmp_path: Path, correct: bool, message: str
) -> None:
    samples = {p.id: [sample(0, "yes", correct)] for p in PROBLEMS}
    with pytest.raises(UserError, match=message):
        run_reranker(make_stage(tmp_path), Reranker(tiny_model(vocab_size=300)), samples)
    with pytest.raises(UserError, match="there are none"):
        run_reranker(make_stage(tmp_path), Reranker(tiny_model(vocab_size=300)), {})
