"""Preparing the paper's data sets: formats in, checked problems out, every row accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reftune.data.derive.preparation import DATA_SETS, Preparation, describe, prepare
from reftune.data.problems import load_problems
from reftune.data.sources import load_rows
from reftune.problem import Cot, Problem, UserError

GSM8K = {
    "question": "Ann has 3 boxes of 4 pens. Each costs $500. How much are they?",
    "answer": "She has 3*4=<<3*4=12>>12 pens.\nThey cost 12*500=$<<12*500=6000>>6,000.\n#### 6,000",
}
SVAMP = {
    "ID": "chal-1",
    "Body": "Ann had 8 pens. If she lost 3 and found 2",
    "Question": "How many has she?",
    "Equation": "( ( 8.0 - 3.0 ) + 2.0 )",
    "Answer": "7.0",
    "Type": "Addition",
    "question_concat": "what other versions of the data set have",
}
MATHQA = {
    "Problem": "3 men need 4 days . how many days does 1 man need ?",
    "Rationale": '"3 * 4 = 12 answer : b"',
    "options": "a ) 7 , b ) 12 days , c ) 3 : 4 , d ) 1 / 4 , e ) none",
    "correct": "b",
    "annotated_formula": "multiply(3, 4)",
    "linear_formula": "multiply(n0,n1)|",
    "category": "physics",
}
OPTIONS = MATHQA["options"]


def lines(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    return str(path)


def prepared(
    name: str, cot: Cot, folder: Path, *rows: dict[str, Any]
) -> tuple[Preparation, list[Problem]]:
    source = lines(folder / "rows.jsonl", *rows)
    done = prepare(name, cot, source=source, out=folder / "out.jsonl")
    return done, load_problems(str(done.out), cot=cot)


@pytest.mark.parametrize(
    ("name", "cot", "row", "problem"),
    [
        (
            "gsm8k",
            "natural",
            GSM8K,
            Problem(
                "gsm8k-rows-1",
                GSM8K["question"],
                "6000",
                "She has 3*4=12 pens.\nThey cost 12*500=$6,000.",
            ),
        ),
        (
            "gsm8k",
            "program",
            GSM8K,
            Problem(
                "gsm8k-rows-1",
                GSM8K["question"],
                "6000",
                "def solution():\n    pens = 3 * 4\n    cost = pens * 500\n    result = cost\n"
                "    return result",
            ),
        ),
        (
            "svamp",
            "natural",
            SVAMP,
            Problem("chal-1", f"{SVAMP['Body']}, {SVAMP['Question']}", "7", "8 - 3 = 5\n5 + 2 = 7"),
        ),
        (
            "svamp",
            "program",
            SVAMP,
            Problem(
                "chal-1",
                f"{SVAMP['Body']}, {SVAMP['Question']}",
                "7",
                "def solution():\n    difference = 8 - 3\n    total = difference + 2\n"
                "    result = total\n    return result",
            ),
        ),
        (
            "mathqa_mcq",
            "natural",
            MATHQA,
            Problem(
                "mathqa_mcq-rows-1",
                f"{MATHQA['Problem']}\n{OPTIONS}",
                "b",
                "3 * 4 = 12 answer : b",
                ("7", "12 days", "3 : 4", "1 / 4", "none"),
            ),
        ),
        (
            "mathqa_mcq",
            "program",
            MATHQA,
            Problem(
                "mathqa_mcq-rows-1",
                f"{MATHQA['Problem']}\n{OPTIONS}",
                "b",
                "def solution():\n    product = 3 * 4\n    result = product\n    return result",
                ("7", "12 days", "3 : 4", "1 / 4", "none"),
            ),
        ),
        (
            "mathqa_numeric",
            "natural",
            MATHQA,
            Problem("mathqa_numeric-rows-1", MATHQA["Problem"], "12", "3 * 4 = 12"),
        ),
        (
            "mathqa_numeric",
            "program",
            MATHQA,
            Problem(
                "mathqa_numeric-rows-1",
                MATHQA["Problem"],
                "12",
                "def solution():\n    product = 3 * 4\n    result = product\n    return result",
            ),
        ),
    ],
)
def test_published_formats(
    tmp_path: Path, name: str, cot: Cot, row: dict[str, Any], problem: Problem
) -> None:
    done, problems = prepared(name, cot, tmp_path, row)
    assert problems == [problem]
    assert (done.read, done.written, done.dropped) == (1, 1, {})


def test_a_large_number_of_an_equation_keeps_its_digits(tmp_path: Path) -> None:
    row = SVAMP | {"Equation": "( 9007199254740993.0 + 2.0 )", "Answer": "9007199254740995.0"}
    _, [program] = prepared("svamp", "program", tmp_path, row)
    assert "9007199254740993 + 2\n" in str(program.chain)
    _, [natural] = prepared("svamp", "natural", tmp_path, row)
    assert natural.chain == "9007199254740993 + 2 = 9007199254740995"


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gsm8k", GSM8K | {"question": f"{'9' * 5000} pens?"}),
        ("gsm8k", GSM8K | {"answer": f"{'9' * 5000} + 1 = {'9' * 400}\n#### 6000"}),
        ("mathqa_mcq", MATHQA | {"Problem": f"{'9' * 5000} men and {'1,' * 300}1 women ?"}),
        ("mathqa_mcq", MATHQA | {"linear_formula": f"add({'9' * 5000},n1)|"}),
        ("svamp", SVAMP | {"Equation": f"( {'9' * 5000} + 2.0 )"}),
    ],
)
def test_numbers_of_thousands_of_digits_give_no_program(
    tmp_path: Path, name: str, row: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="because it has a number of hundreds of digits"):
        prepared(name, "program", tmp_path, row)


def test_a_large_option_keeps_its_digits(tmp_path: Path) -> None:
    large = {"Rationale": "9007199254740992 + 1 = 9007199254740993 answer b", "correct": "b"}
    row = MATHQA | large | {"options": "a ) 7 , b ) 9007199254740993"}
    _, [problem] = prepared("mathqa_numeric", "natural", tmp_path, row)
    assert problem.answer == "9007199254740993"


@pytest.mark.usefixtures("_own_cache")
def test_a_directory_as_the_hub_has_it(tmp_path: Path) -> None:
    from datasets import Dataset

    for split, rows in (("train", [GSM8K]), ("test", [GSM8K, GSM8K | {"question": "Again?"}])):
        Dataset.from_list(rows).to_parquet(tmp_path / "gsm8k" / f"{split}-00000-of-00001.parquet")
    done = prepare(
        "gsm8k", "program", source=str(tmp_path / "gsm8k"), split="test", out=tmp_path / "o.jsonl"
    )
    assert [p.id for p in load_problems(str(done.out), cot="program")] == [
        "gsm8k-test-1",
        "gsm8k-test-2",
    ]


def test_official_files_keep_their_chains_and_get_programs(tmp_path: Path) -> None:
    program = 'def solution():\n    """How many?"""\n    pens = 3 + 4\n    return pens'
    row = {"item_id": "svamp_0", "question": "How many?", "answer_value": "7.0"}
    own = program.replace('    """How many?"""\n', "")
    assert prepared("svamp", "program", tmp_path, row | {"answer_cot": program})[1] == [
        Problem("svamp_0", "How many?", "7", own)
    ]
    text = "3 pens + 4 pens = 7 pens\n\nTherefore, the answer is <7>."
    [natural] = prepared("svamp", "natural", tmp_path, row | {"answer_cot": text})[1]
    assert natural.chain == "3 pens + 4 pens = 7 pens"
    [derived] = prepared("svamp", "program", tmp_path, row | {"answer_cot": text})[1]
    assert derived.chain == "def solution():\n    pens = 3 + 4\n    result = pens\n    return result"


def test_each_reason_for_dropping_is_counted_with_its_first_id(tmp_path: Path) -> None:
    rows = [
        MATHQA | {"id": "0"},
        MATHQA | {"id": "1", "linear_formula": "add(n0,n1)|"},  # 7: another option
        MATHQA | {"id": "2", "linear_formula": "power(n0,n1)|"},  # 81: no option
        MATHQA | {"id": "3", "linear_formula": "subtract(n0,n0)|divide(n1,#0)|"},
        MATHQA | {"id": "4", "linear_formula": "add(n0,n9)|"},
        MATHQA | {"id": "5", "linear_formula": "add(n0,n8)|"},
        MATHQA | {"id": "6", "options": "12"},
        MATHQA | {"id": "7", "correct": "x"},
    ]
    done, problems = prepared("mathqa_mcq", "program", tmp_path, *rows)
    assert [problem.id for problem in problems] == ["0"]
    assert list(done.dropped.values()) == [["4", "5"], ["mathqa_mcq-rows-7"], ["7"], ["1"], ["2"], ["3"]]
    assert [reason.partition(";")[0] for reason in done.dropped] == [
        "the formula names a number that is not there",
        "cannot read the choices",
        "its answer cannot be graded",
        "its program gives another answer",
        "its program names none of the options",
        "its program gives no answer (exception)",
    ]
    shown = describe(done)
    assert shown[0].startswith("read     8 rows of ")
    assert shown[1].startswith("written  1 (12.50%) to ")
    assert shown[2] == "dropped  2: the formula names a number that is not there (first: 4)"


def test_an_option_that_is_not_one_number_is_dropped_from_numeric(tmp_path: Path) -> None:
    rows = [MATHQA | {"id": letter, "correct": letter} for letter in "abcde"]
    done, problems = prepared("mathqa_numeric", "natural", tmp_path, *rows)
    assert [(p.id, p.answer) for p in problems] == [("a", "7"), ("b", "12"), ("d", "0.25")]
    assert done.dropped == {"its right option is not one number": ["c", "e"]}


def test_a_letter_that_names_no_shown_option_leaves_the_chain(tmp_path: Path) -> None:
    endings = [
        "answer b",
        ". the answer is b .",
        " ( answer : ( b ) )",
        ". ans - b",
        " hence correct option is b",
    ]
    rows = [
        MATHQA | {"Rationale": f"3 * 4 = 12 {ending}"} for ending in (*endings, "b", "m of b", "= 5 b")
    ]
    chains = [p.chain for p in prepared("mathqa_numeric", "natural", tmp_path, *rows)[1]]
    assert chains[:6] == ["3 * 4 = 12"] * 6
    assert chains[6:] == ["3 * 4 = 12 m of b", "3 * 4 = 12 = 5"]


def test_a_chain_that_gives_another_answer_is_dropped(tmp_path: Path) -> None:
    rows = [SVAMP, SVAMP | {"ID": "chal-2", "Answer": "9.0"}]
    assert prepared("svamp", "natural", tmp_path, *rows)[0].dropped == {
        "the equation gives another answer": ["chal-2"]
    }
    assert prepared("svamp", "program", tmp_path, *rows)[0].dropped == {
        "its program gives another answer": ["chal-2"]
    }


def refused(match: str, folder: Path, name: str, cot: Cot, *rows: dict[str, Any], **more: Any) -> None:
    source = lines(folder / "rows.jsonl", *rows)
    with pytest.raises(UserError, match=match):
        prepare(name, cot, **({"source": source, "out": folder / "out.jsonl"} | more))
    assert not (folder / "out.jsonl").exists()


def test_bad_input_is_refused(tmp_path: Path) -> None:
    refused(
        "^mathqa: unknown data set; choose gsm8k, svamp, mathqa_mcq, mathqa_numeric$",
        tmp_path,
        "mathqa",
        "program",
    )
    refused(
        r"rows\.jsonl:1: has 'a'; gsm8k has question, answer as published",
        tmp_path,
        "gsm8k",
        "natural",
        {"a": 1},
    )
    refused(
        r"rows\.jsonl:1: has .*'Body'.*; mathqa_mcq has Problem, ",
        tmp_path,
        "mathqa_mcq",
        "natural",
        SVAMP,
    )
    refused("no problems in it", tmp_path, "gsm8k", "natural")
    refused(
        r"none\.jsonl: no such file", tmp_path, "gsm8k", "natural", source=str(tmp_path / "none.jsonl")
    )
    refused(
        "is the source; give another --out",
        tmp_path,
        "gsm8k",
        "natural",
        GSM8K,
        out=tmp_path / "rows.jsonl",
    )
    refused(
        r"rows\.jsonl:1: a question without options",
        tmp_path,
        "mathqa_mcq",
        "natural",
        MATHQA | {"options": None},
    )
    refused(r"rows\.jsonl:2: id 'chal-1' is already", tmp_path, "svamp", "natural", SVAMP, SVAMP)
    wrong = SVAMP | {"Answer": "9"}
    refused(
        "no program chain of its 1 problems can be used; 1 times because its program gives another"
        " answer, first in chal-1",
        tmp_path, "svamp", "program", wrong,
    )  # fmt: skip
    (tmp_path / "folder").mkdir()
    refused("cannot be written", tmp_path, "gsm8k", "natural", GSM8K, out=tmp_path / "rows.jsonl" / "x")


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_hub_is_asked_by_default(name: str) -> None:
    with pytest.raises(UserError, match=f"^cannot load {DATA_SETS[name].source}: "):
        prepare(name, "natural")


# Real data sets


@pytest.mark.parametrize(
    ("name", "source", "least"),
    [
        ("gsm8k", "gsm8k/test.jsonl", 198),
        ("mathqa_mcq", "mathqa/mathqa_with_formulas_1605.json", 193),
        ("mathqa_numeric", "mathqa/mathqa_with_formulas_1605.json", 194),
    ],
)
def test_real_programs_are_derived(
    shared_data: Path, tmp_path: Path, name: str, source: str, least: int
) -> None:
    rows = [row for _, row in load_rows(str(shared_data / source), "train", None)][:200]
    done = prepare(
        name, "program", source=lines(tmp_path / "rows.jsonl", *rows), out=tmp_path / "out.jsonl"
    )
    assert done.written >= least
    assert done.written + sum(map(len, done.dropped.values())) == done.read == 200


def test_numeric_answers_are_those_of_the_official_test_set(shared_data: Path, tmp_path: Path) -> None:
    source = str(shared_data / "mathqa/mathqa_with_formulas_1605.json")
    done = prepare("mathqa_numeric", "natural", source=source, out=tmp_path / "out.jsonl")
    official = {
        problem.question: float(problem.answer)
        for problem in load_problems(
            str(shared_data / "mwp_reft/mathqa-numeric_test_set.json"), cot="natural"
        )
    }
    ours = load_problems(str(done.out), cot="natural")
    differ = [p for p in ours if abs(float(p.answer) - official[p.question]) > 0.01]
    # The official file reads "$ 1,354" as 1 and drops the sign of "- 120".
    assert len(differ) == 7
    assert all(float(p.answer) < 0 or float(p.answer) > 1000 for p in differ)
