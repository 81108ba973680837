"""Accuracies and comparisons of hand-made answers, and how the answers come about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from reftune.config import Evaluation, Prompt
from reftune.evaluation.evaluate import (
    answer_questions,
    compare,
    summarise,
    write_result,
    wrong_chain_share,
)
from reftune.evaluation.statistics import bootstrap_difference
from reftune.files import read_json, read_jsonl, write_jsonl
from reftune.grading.judge import make_judge
from reftune.model.prompts import Prompter
from reftune.model.scratch import train_tokenizer
from reftune.problem import Answer, Problem, UserError
from reftune.sampling.sampler import Sample
from reftune.training.rollouts import Generator

Row = dict[str, Any]


def row(correct: bool, *samples: tuple[Answer | None, bool]) -> Row:
    drawn = [{"status": "ok", "value": value, "correct": right} for value, right in samples]
    return {"status": "ok", "correct": correct} | ({"samples": drawn} if samples else {})


def greedy(*correct: int) -> list[Row]:
    return [row(bool(c)) for c in correct]


FOUR = [
    row(True, (5.0, False), (17.0, True), (17.0, True)),  # the majority is right
    row(False, (3.0, False), (8.0, True), (None, False)),  # a tie: the one seen first, which is wrong
    row(True, (None, False), (None, False), (4.0, True)),  # what cannot be read has no vote
    row(True, (None, False), (None, False), (None, False)),  # nobody votes
]


def test_summarise_by_hand() -> None:
    summary = summarise(FOUR)
    assert list(summary) == ["greedy", "vote", "pass", "curves"]
    # Wilson for 3 of 4 with z = 1.959964: centre 0.627527, half-width 0.326886;
    # for 2 of 4: 1/2 and z / (2 sqrt(4 + z^2)) = 0.349961.
    assert summary["greedy"]["correct"] == 3
    assert summary["greedy"]["accuracy"] == 0.75
    assert summary["greedy"]["interval"] == pytest.approx([0.300641, 0.954413], abs=2e-6)
    assert (summary["vote"]["k"], summary["vote"]["correct"], summary["vote"]["accuracy"]) == (3, 2, 0.5)
    assert summary["vote"]["interval"] == pytest.approx([0.150039, 0.849961], abs=2e-6)
    # 2, 1, 1 and 0 of 3 samples are right. Of the three pairs of samples 3, 2, 2 and 0 hold a right one.
    assert summary["pass"] == pytest.approx({"1": 1 / 3, "2": 7 / 12, "3": 3 / 4})


def test_summarise_without_samples_has_greedy_alone() -> None:
    assert summarise(greedy(1, 1, 0, 1)) == {"greedy": summarise(FOUR)["greedy"]}


@pytest.mark.parametrize(
    ("samples", "right"),
    [
        ([(2.0, False), (1.0, True), (1.0, True)], True),
        ([(1.0, True), (2.0, False)], True),  # a tie, and the right one was first
        ([(2.0, False), (1.0, True)], False),
        ([(2.0, False), (2.0, False), (1.0, True)], False),
        ([(None, False), (1.0, True)], True),
        ([(None, False), (None, False)], False),
        ([("b", True), ("c", False), ("b", True)], True),
        ([("b", True), ("c", False), ("c", False)], False),
        # One number within 1e-2, which counts as its first spelling was judged.
        ([(7.0, False), (3.333, True), (7.0, False), (3.34, True), (3.3334, True)], True),
        ([(0.995, False), (1.0, True), (1.0, True)], False),
        ([(0.0, True), (None, False)], True),  # zero is an answer
        ([(1.0, True), (1.0, False)], True),  # a reward of one's own may judge the chains themselves
    ],
)
def test_the_majority_vote_counts_as_its_answer_was_judged(
    samples: list[tuple[Answer | None, bool]], right: bool
) -> None:
    assert summarise([row(False, *samples)])["vote"]["correct"] == right


@pytest.mark.parametrize(
    ("count", "ks"),
    [(1, "1"), (2, "1 2"), (6, "1 2 4 6"), (8, "1 2 4 8"), (100, "1 2 4 8 16 32 64 100")],
)
def test_pass_is_given_for_the_powers_of_two_and_for_all_samples(count: int, ks: str) -> None:
    summary = summarise([row(True, (1.0, True), *[(2.0, False)] * (count - 1))])
    assert list(summary["pass"]) == ks.split()
    # One of them is right: k of them hold it with probability k / count.
    assert summary["pass"] == pytest.approx({k: int(k) / count for k in ks.split()})


QUESTION = "Ann has 7 coins. Ann finds 3 coins. How many coins does Ann have now?\na ) 10 , b ) 11"
GOOD, BAD = "7 + 3 = 10. So Ann has 10 coins now.", "7 + 4 = 11. So Ann has 11 coins now."


def chained(chain: str, correct: bool, trigger: str = "\nTherefore, the answer is: ") -> Row:
    return row(correct) | {"question": QUESTION, "completion": f"{chain}{trigger}a"}


def test_wrong_chains_are_counted_among_right_answers_alone() -> None:
    rows = [chained(chain, correct) for chain in (GOOD, BAD) for correct in (True, False)]
    rows += [chained(GOOD, True), chained(GOOD, True), chained("It is 10, as one sees.", True)]
    found = wrong_chain_share(rows)
    assert found is not None
    assert (found["wrong"], found["checked"], found["unchecked"], found["share"]) == (1, 4, 1, 0.25)
    # Wilson for 1 of 4 mirrors that for 3 of 4, see above.
    assert found["interval"] == pytest.approx([0.045587, 0.699359], abs=2e-6)
    assert summarise(rows)["right_answer_wrong_chain"] == found
    assert summarise(rows)["greedy"]["correct"] == 5


def test_no_share_of_wrong_chains_where_none_can_be_checked() -> None:
    program = "def solution():\n    ann = 7\n    return ann + 3"
    for rows in (
        [],
        greedy(1, 0),
        [chained(GOOD, False)],
        [chained("It is 10, as one sees.", True)],
        [{"question": QUESTION, "completion": program, "correct": True}],
        [chained(GOOD, True) | {"question": "What is 7 + 3?"}],
    ):
        assert wrong_chain_share(rows) is None
        assert not rows or "right_answer_wrong_chain" not in summarise(rows)


def test_the_chain_ends_where_the_trigger_begins(tmp_path: Path) -> None:
    rows = [chained(GOOD, True, trigger="\nso:  "), chained(BAD, True, trigger=" so: ")]
    share = {"wrong": 1, "checked": 2, "unchecked": 0, "share": 0.5}
    found = wrong_chain_share(rows, "\nso: ")
    assert found is not None
    assert found | share == found
    write_result(tmp_path, {"sft": rows}, 100, 0, "\nso: ")
    assert read_json(tmp_path / "result.json")["models"]["sft"]["right_answer_wrong_chain"] == found
    assert wrong_chain_share(rows[:1]) is None  # with the paper's trigger "so: a" is part of the chain


def test_compare_by_hand() -> None:
    # b gains questions 5-9 and loses question 4: +4 of 10, and 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64.
    a, b = greedy(1, 1, 1, 1, 1, 0, 0, 0, 0, 0), greedy(1, 1, 1, 1, 0, 1, 1, 1, 1, 1)
    [result] = compare(a, b, resamples=1000, seed=0)
    assert result["aggregation"] == "greedy"
    assert result["difference"] == pytest.approx(0.4)
    assert result["mcnemar_p"] == pytest.approx(14 / 64)
    low, high = result["interval"]
    # Differences of +1 (5), -1 (1) and 0 (4) have mean 0.4 and a standard error of sqrt(0.44 / 10).
    assert (low, high) == pytest.approx((0.4 - 1.96 * 0.21, 0.4 + 1.96 * 0.21), abs=0.11)
    assert compare(a, b, resamples=1000, seed=0) == [result]


def test_compare_draws_as_it_is_told() -> None:
    right_a, right_b = [i % 3 == 0 for i in range(400)], [i % 5 < 2 for i in range(400)]
    a, b = greedy(*right_a), greedy(*right_b)
    for resamples, seed in ((150, 5), (150, 6), (170, 5)):
        expected = bootstrap_difference(right_a, right_b, resamples=resamples, seed=seed)
        assert compare(a, b, resamples, seed)[0]["interval"] == list(expected)


def test_compare_counts_what_the_second_model_gains() -> None:
    better, worse = greedy(1, 1, 1), greedy(0, 0, 0)
    [gain], [loss] = compare(worse, better, 100, seed=1), compare(better, worse, 100, seed=1)
    assert (gain["difference"], gain["interval"]) == (1.0, [1.0, 1.0])
    assert (loss["difference"], loss["interval"]) == (-1.0, [-1.0, -1.0])


def test_compare_takes_the_votes_where_both_models_have_them() -> None:
    never = [row(False, (1.0, False)) for _ in FOUR]
    results = {result["aggregation"]: result for result in compare(never, FOUR, 100, seed=0)}
    assert {name: result["difference"] for name, result in results.items()} == {
        "greedy": 0.75,
        "vote": 0.5,
    }
    assert results["vote"]["mcnemar_p"] == pytest.approx(0.5)  # two gains: 2 / 2^2
    for a, b in ((FOUR, greedy(0, 0, 0, 0)), (greedy(0, 0, 0, 0), FOUR)):
        assert [result["aggregation"] for result in compare(a, b, 100, seed=0)] == ["greedy"]


def test_compare_refuses_answers_to_different_numbers_of_questions() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare(greedy(1, 0), greedy(1), 100, seed=0)


def test_write_result_compares_each_model_with_all_before_it(tmp_path: Path) -> None:
    answers = {"warmup": greedy(0, 0, 0, 1), "sft": greedy(0, 0, 1, 1), "reft": greedy(0, 1, 1, 1)}
    write_result(tmp_path, answers, resamples=200, seed=3)
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert read_json(tmp_path / "result.json") == result
    assert list(result) == ["n", "unjudged", "models", "comparisons"]
    assert (result["n"], result["unjudged"]) == (4, 0)
    assert {name: m["greedy"]["accuracy"] for name, m in result["models"].items()} == {
        "warmup": 0.25, "sft": 0.5, "reft": 0.75,
    }  # fmt: skip
    assert [(c["a"], c["b"], c["aggregation"], c["difference"]) for c in result["comparisons"]] == [
        ("warmup", "sft", "greedy", 0.25),
        ("warmup", "reft", "greedy", 0.5),
        ("sft", "reft", "greedy", 0.25),
    ]
    [expected] = compare(answers["sft"], answers["reft"], 200, 3)
    assert result["comparisons"][2] == {"a": "sft", "b": "reft", **expected}


def test_questions_on_which_the_sandbox_failed_count_for_no_model(tmp_path: Path) -> None:
    failed: Row = {"status": "sandbox_error", "correct": False}
    sample = row(True, (7, True)) | {"samples": [failed | {"value": None}]}
    seven = [row(bool(c), (7, bool(c))) for c in (1, 1, 0, 1)]
    answers = {"sft": [*seven[:3], sample], "reft": [row(False, (7, True)) | failed, *seven[1:]]}
    write_result(tmp_path, answers, resamples=100, seed=0)
    result = read_json(tmp_path / "result.json")
    assert (result["n"], result["unjudged"]) == (2, 2)  # the second and the third
    for name in ("sft", "reft"):
        assert result["models"][name]["greedy"]["accuracy"] == 0.5
        assert result["models"][name]["pass"] == {"1": 0.5}
    with pytest.raises(UserError, match="the sandbox failed on every question"):
        write_result(tmp_path, {"sft": [sample]}, resamples=100, seed=0)


@pytest.mark.parametrize(("names", "pairs"), [(["a"], []), (["a", "b"], [("a", "b")])])
def test_write_result_of_one_and_of_two_models(
    tmp_path: Path, names: list[str], pairs: list[tuple[str, str]]
) -> None:
    write_result(tmp_path, dict.fromkeys(names, FOUR), resamples=100, seed=0)
    result = read_json(tmp_path / "result.json")
    assert result["models"] == {name: summarise(FOUR) for name in names}
    found = [(c["a"], c["b"], c["aggregation"]) for c in result["comparisons"]]
    assert found == [(a, b, aggregation) for a, b in pairs for aggregation in ("greedy", "vote")]


def test_answers_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "test" / "sft.jsonl"
    rows = [*FOUR, {"correct": False, "value": None, "completion": "two\nlines\u2028and \x85 more 🍏"}]
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == ""
    assert list(path.parent.iterdir()) == [path]


class Script:
    """A sampler that says what was written down, and remembers what it was asked."""

    exact, cut = True, False  # whether a reply too many is left out

    def update_weights(self, weights: object) -> None:
        """Nothing that was written down depends on them."""

    def __init__(self, prompter: Prompter, *replies: list[str]) -> None:
        self.prompter, self.replies = prompter, list(replies)
        self.calls: list[tuple[float, list[int]]] = []

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        temperature: float,
        **settings: int,
    ) -> list[Sample]:
        self.calls.append((temperature, list(seeds)))
        replies = self.replies.pop(0)
        if self.cut:
            replies = replies[: len(prompts)]
        said = [self.prompter.tokenizer(text).input_ids for text in replies]
        return [
            Sample(list(prompt), [*ids, self.prompter.eos], [0.0] * (len(ids) + 1), True)
            for prompt, ids in zip(prompts, said, strict=True)
        ]


TRIGGER = Prompt().trigger
PROBLEMS = [Problem("p", "One and one?", "2"), Problem("q", "Two and two?", "4")]


def scripted(*replies: list[str]) -> tuple[Generator, Script]:
    prompter = Prompter(train_tokenizer(["One and one? Two."], 300), Prompt(), "natural")
    script = Script(prompter, *replies)
    judge = make_judge("natural", trigger=TRIGGER, partial_reward=0.1)
    return Generator(script, judge, prompter, Accelerator(cpu=True)), script


def test_answer_questions_gives_each_question_its_own_samples() -> None:
    drawn = [f"So.{TRIGGER}{answer}" for answer in ("2", "3", "2", "5", "4")] + ["no idea"]
    generator, script = scripted([f"It is{TRIGGER}{answer}" for answer in ("2", "7")], drawn)
    rows = answer_questions(
        generator, PROBLEMS, Evaluation(samples=3, temperature=0.5), seed=7, at_once=9
    )
    assert [(r["id"], r["question"], r["answer"], r["correct"], r["value"]) for r in rows] == [
        ("p", "One and one?", "2", True, 2.0),
        ("q", "Two and two?", "4", False, 7.0),
    ]
    assert rows[1]["completion"] == f"It is{TRIGGER}7"
    asked = "Question:\nTwo and two?\nAnswer reasoning:\n"
    assert (rows[1]["prompt"], generator.prompter.wording.question(PROBLEMS[1])) == (asked, asked)
    assert [[s["value"] for s in r["samples"]] for r in rows] == [[2.0, 3.0, 2.0], [5.0, 4.0, None]]
    assert [[s["correct"] for s in r["samples"]] for r in rows] == [
        [True, False, True],
        [False, True, False],
    ]
    assert rows[1]["samples"][2] == {
        "completion": "no idea", "status": "no_result", "value": None, "correct": False,
    }  # fmt: skip
    assert [temperature for temperature, _ in script.calls] == [0.0, 0.5]
    assert len(set(script.calls[1][1])) == 6  # no two samples share their randomness


def test_answer_questions_without_samples_is_greedy() -> None:
    replies = [f"It is{TRIGGER}{answer}" for answer in ("2", "4")]
    generator, script = scripted(replies)
    rows = answer_questions(generator, PROBLEMS, Evaluation(), seed=7, at_once=9)
    assert [r["correct"] for r in rows] == [True, True]
    assert all("samples" not in r for r in rows)
    assert len(script.calls) == 1


@pytest.mark.parametrize("at_once", [1, 3, 4, 7, 100])
def test_answers_do_not_depend_on_how_the_work_is_cut(at_once: int) -> None:
    problems = [Problem(str(i), f"{i}?", "2") for i in range(5)]

    def asked(at_once: int) -> list[tuple[float, int]]:
        generator, script = scripted(*[["a"] * 99] * 99)
        script.cut = True
        rows = answer_questions(generator, problems, Evaluation(samples=3), 7, at_once)
        assert [(row["id"], len(row["samples"])) for row in rows] == [(str(i), 3) for i in range(5)]
        assert all(len(seeds) <= max(at_once, 3 * temperature) for temperature, seeds in script.calls)
        return [(temperature, seed) for temperature, seeds in script.calls for seed in seeds]

    assert asked(at_once) == asked(1000)  # each sample draws from its own source
    assert len(set(asked(at_once))) == 5 + 15


def test_pieces_that_an_interrupted_start_has_finished_are_not_asked_again(tmp_path: Path) -> None:
    problems = [Problem(str(i), f"{i}?", "2") for i in range(5)]
    given = (problems, Evaluation(samples=2), 7, 4)
    for broken in range(6):  # two greedy pieces, then three of two questions each
        replies = [[f"{n} {k}" for k in range(4)] for n in range(broken)]
        folder = tmp_path / str(broken)
        generator, script = scripted(*replies)
        script.cut = True
        with pytest.raises(IndexError) if broken < 5 else nullcontext():  # there the script ends
            answer_questions(generator, *given, folder)
        rest = [[f"{n} {k}" for k in range(4)] for n in range(broken, 5)]
        generator, script = scripted(*rest)
        script.cut = True
        rows = answer_questions(generator, *given, folder)
        assert len(script.calls) == 5 - broken
        assert [row["completion"] for row in rows] == ["0 0", "0 1", "0 2", "0 3", "1 0"]
        found = [sample["completion"] for row in rows for sample in row["samples"]]
        assert found == [f"{n} {k}" for n in (2, 3) for k in range(4)] + ["4 0", "4 1"]


def test_answer_questions_depends_on_the_seed_alone() -> None:
    seeds = []
    for seed in (7, 7, 8):
        generator, script = scripted(["a", "b"], ["c", "d"])
        answer_questions(generator, PROBLEMS, Evaluation(samples=1), seed, 9)
        seeds.append(script.calls[1][1])
    assert seeds[0] == seeds[1] != seeds[2]
