"""Reading problems in every format, what is refused, and how they are split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reftune.config import Columns, Data, Synthetic
from reftune.data.problems import SplitReport, load_problems, load_splits, load_test, write_problems
from reftune.problem import Cot, Problem, UserError

PROGRAM = "def solution():\n    pens = 3\n    return pens"


def write_lines(path: Path, *rows: dict[str, Any] | str) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def numbered(path: Path, numbers: range) -> str:
    """Write problems whose questions differ by their number only."""
    return write_lines(
        path, *({"question": f"What is {n}?", "answer": n, "chain": f"{n}."} for n in numbers)
    )


# Formats


def test_our_jsonl_comes_back_as_written(tmp_path: Path) -> None:
    problems = [
        Problem("a", "How many?", "3", PROGRAM),
        Problem("b", "Café: ½ of 1\u2028or 2?", "0.5"),
        Problem("c", "Which?\na ) 1 , b ) 2", "b", None, ("1", "2")),
    ]
    write_problems(tmp_path / "own.jsonl", problems)
    assert load_problems(str(tmp_path / "own.jsonl"), cot="program") == problems


def test_our_jsonl_needs_question_and_answer_only(tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "few.jsonl",
        {"question": " One? ", "answer": 1},
        "",
        {"question": "Two?", "answer": 2.0},
    )
    assert load_problems(source, cot="natural") == [
        Problem("few-1", "One?", "1"),
        Problem("few-2", "Two?", "2"),
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("203.0", "203"),
        ("1,000", "1000"),
        ("-1,234,567.0", "-1234567"),
        ("3.50", "3.50"),
        ("100", "100"),
        (72, "72"),
        (72.0, "72"),
        (-0.5, "-0.5"),
        ("$5", "$5"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_numbers_are_written_plainly(tmp_path: Path, written: Any, read: str) -> None:
    source = write_lines(tmp_path / "n.jsonl", {"question": "?", "answer": written})
    assert load_problems(source, cot="natural")[0].answer == read


def test_official_program_loses_its_docstring(tmp_path: Path) -> None:
    question = 'Tim says "3 pens".\nHow many?'
    chain = f'def solution():\n    """{question}"""\n    pens = 3\n    return pens'
    rows = [{"item_id": "svamp_0", "question": question, "answer_cot": chain, "answer_value": "3.0"}]
    (tmp_path / "official.json").write_text(json.dumps(rows))
    assert load_problems(str(tmp_path / "official.json"), cot="program") == [
        Problem("svamp_0", question, "3", PROGRAM)
    ]


@pytest.mark.parametrize(
    "written",
    [
        PROGRAM.replace("\n", "\r\n"),
        PROGRAM.replace("\n", "\r"),
        PROGRAM.replace(":\n", ": \t\n") + "\r\n",
        PROGRAM.replace("solution():", "  solution( ) :"),
        PROGRAM.replace(":\n", ':\r\n    """How many?"""\r\n'),
    ],
)
def test_ends_of_lines_and_blanks_make_no_other_program(tmp_path: Path, written: str) -> None:
    source = write_lines(tmp_path / "x.jsonl", {"question": "?", "answer": "3", "chain": written})
    assert load_problems(source, cot="program")[0].chain == PROGRAM


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1 + 2 = 3\n\nTherefore, the answer is <3>.", "1 + 2 = 3"),
        ("1 + 2 = 3\nTherefore, the answer is: 3", "1 + 2 = 3"),
        ("So 3. Therefore, the answer is <3>.", "So 3."),
        ("Seen before. The answer is <3>.", "Seen before."),
        ("Therefore, the answer is odd.\nIt is 3.", "Therefore, the answer is odd.\nIt is 3."),
        ("The answer is 1 + 2 = 3.", "The answer is 1 + 2 = 3."),
        ("Therefore, the answer is <3>.", None),
        ("", None),
    ],
)
def test_natural_chain_loses_its_answer_sentence(tmp_path: Path, written: str, read: str | None) -> None:
    row = {"item_id": "x", "question": "?", "answer_cot": written, "answer_value": "3"}
    assert load_problems(write_lines(tmp_path / "x.jsonl", row), cot="natural")[0].chain == read


@pytest.mark.parametrize(("cot", "chain"), [("natural", PROGRAM), ("program", "1 + 2 = 3.")])
def test_chain_of_the_other_kind_is_left_out(tmp_path: Path, cot: Cot, chain: str) -> None:
    source = write_lines(tmp_path / "x.jsonl", {"question": "?", "answer": "3", "chain": chain})
    assert load_problems(source, cot=cot)[0].chain is None


def test_gsm8k_answer_is_split_into_chain_and_number(tmp_path: Path) -> None:
    answer = "Half is 4250/2 = $<<4250/2=2125>>2125.\nDone.\n#### 2,125"
    source = write_lines(tmp_path / "gsm.jsonl", {"question": "Half of 4250?", "answer": answer})
    chain = "Half is 4250/2 = $2125.\nDone."
    assert load_problems(source, cot="natural") == [Problem("gsm-1", "Half of 4250?", "2125", chain)]
    assert load_problems(source, cot="program") == [Problem("gsm-1", "Half of 4250?", "2125", None)]


@pytest.mark.parametrize(
    "options", ["a ) 3 , b ) 1,200 km , c ) none", "['a ) 3', 'b ) 1,200 km', 'c ) none']"]
)
def test_mathqa_options_become_choices(tmp_path: Path, options: str) -> None:
    source = write_lines(
        tmp_path / "m.jsonl",
        {"Problem": "how far ?", "Rationale": '"far . answer b"', "options": options, "correct": "b"},
        {"item_id": "mathqa_0", "question": f"how far ?\n{options}", "answer_value": "b"},
    )
    published, official = load_problems(source, cot="natural")
    assert published.choices == official.choices == ("3", "1,200 km", "none")
    assert published.question == official.question == f"how far ?\n{options}"
    assert published.answer == official.answer == "b"
    assert published.chain == "far . answer b"


def test_listed_choices_are_shown_to_the_model_and_answered_by_letter(tmp_path: Path) -> None:
    row = {"question": "2 + 2?", "answer": "4", "choices": [3, 4]}
    (problem,) = load_problems(write_lines(tmp_path / "c.jsonl", row), cot="natural")
    assert problem == Problem("c-1", "2 + 2?\na ) 3 , b ) 4", "b", None, ("3", "4"))


def test_svamp_question_follows_its_body(tmp_path: Path) -> None:
    row = {"ID": "chal-1", "Question": "How many?", "Equation": "( 3.0 + 4.0 )", "Answer": 7.0}
    bodies = {"She has 3.": "She has 3. How many?", "If she has 3": "If she has 3, How many?"}
    for body, question in bodies.items():
        source = write_lines(tmp_path / "svamp.jsonl", row | {"Body": body})
        assert load_problems(source, cot="program") == [Problem("chal-1", question, "7")]


@pytest.mark.usefixtures("_own_cache")
def test_tables_are_read_with_named_columns(tmp_path: Path) -> None:
    from datasets import Dataset

    table = Dataset.from_dict(
        {"key": [7, 8], "q": ["One?", "Two?"], "a": [1.0, 2.5], "why": ["It is 1.", None]}
    )
    table.to_csv(tmp_path / "t.csv")
    table.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "hub").mkdir()
    table.to_parquet(tmp_path / "hub" / "test-00000-of-00001.parquet")
    columns = Columns(id="key", question="q", answer="a", chain="why")
    expected = [Problem("7", "One?", "1", "It is 1."), Problem("8", "Two?", "2.5")]
    for name, split in (("t.csv", "train"), ("t.parquet", "train"), ("hub", "test")):
        assert (
            load_problems(str(tmp_path / name), cot="natural", split=split, columns=columns) == expected
        )


def test_rows_are_read_like_lines_of_a_file() -> None:
    rows = [{"question": "One?", "answer": 1, "chain": "It is 1."}, {"question": "Two?", "answer": "2"}]
    expected = [Problem("data-1", "One?", "1", "It is 1."), Problem("data-2", "Two?", "2")]
    assert load_problems(rows, cot="natural") == expected
    assert load_problems(iter(rows), cot="natural") == expected
    assert load_problems(expected, cot="natural") == expected  # problems are rows, too
    named = load_problems(rows, cot="natural", new_ids="train")
    assert [problem.id for problem in named] == ["train-1", "train-2"]
    with pytest.raises(UserError, match="row 2 of train: id 'x' is already that of row 1 of train;"):
        load_problems([{**row, "id": "x"} for row in rows], cot="natural", new_ids="train")
    with pytest.raises(UserError, match="row 1 of data: not a mapping"):
        load_problems(["One?"], cot="natural")


# Bad input


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "x"', r"x.jsonl:2: not JSON \(Expecting ',' delimiter, column 17\)"),
        ("[1]", "x.jsonl:2: not an object"),
        ({"question": "x"}, "x.jsonl:2: has 'question', not 'question' and 'answer'"),
        ({"question": "x", "answer": None}, "x.jsonl:2: 'answer' is empty"),
        ({"question": " ", "answer": "3"}, "x.jsonl:2: 'question' is empty"),
        ({"question": ["x"], "answer": "3"}, "x.jsonl:2: 'question' is a list"),
        ({"question": "x", "answer": "many"}, "x.jsonl:2: .*'many' is not a number"),
        ({"question": "x", "answer": float("nan")}, "x.jsonl:2: 'answer' is empty"),
        (
            {"question": "x", "answer": "c", "choices": ["3", "4"]},
            "x.jsonl:2: .*names none of its choices",
        ),
        ({"question": "x", "answer": "a", "choices": "3 or 4"}, "x.jsonl:2: cannot read the choices"),
        ({"question": "x", "answer": "text\n####"}, "x.jsonl:2: .*is empty"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: dict[str, Any] | str, message: str) -> None:
    source = write_lines(tmp_path / "x.jsonl", {"question": "?", "answer": "3"}, line)
    with pytest.raises(UserError, match=message):
        load_problems(source, cot="program")


def test_bad_item_of_a_json_array_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"question": "?", "answer": 1},\n 5]')
    with pytest.raises(UserError, match=r"x\.json: item 2: not an object"):
        load_problems(str(path), cot="natural")
    path.write_text('[{"question": "?", "answer": 1},\n {]')
    with pytest.raises(UserError, match=r"x\.json:2: not JSON"):
        load_problems(str(path), cot="natural")


def test_an_array_may_stand_behind_a_mark_of_utf_8_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('\ufeff\n \n [{"question": "?", "answer": 1}]')
    [problem] = load_problems(str(path), cot="natural")
    assert problem.answer == "1"


@pytest.mark.parametrize(
    "source", ["missing.jsonl", "missing.parquet", "./missing", "/a/b/c", "~/missing.csv"]
)
def test_missing_file(source: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_problems(source, cot="natural")


@pytest.mark.parametrize("source", ["nobody/nothing", "nothing"])
def test_hub_failure_is_one_sentence(source: str) -> None:
    with pytest.raises(UserError, match=f"^cannot load {source}: ") as caught:
        load_problems(source, cot="natural")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_own_cache")
def test_unknown_split_and_column_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("q,a\nOne?,1\n")
    with pytest.raises(UserError, match=r"cannot load .*validation"):
        load_problems(str(tmp_path), cot="natural", split="validation")
    with pytest.raises(UserError, match=r"no 'ask' among 'q', 'a'; correct data\.columns\.question"):
        load_problems(str(tmp_path), cot="natural", columns=Columns(question="ask", answer="a"))
    with pytest.raises(
        UserError, match=r"train\.csv:2: has 'q', 'a', not 'question' and 'answer'; set data\.columns"
    ):
        load_problems(str(tmp_path), cot="natural")


def test_column_of_chains_may_be_missing_in_a_test_set(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "x.jsonl", {"q": "?", "a": 1})
    columns = Columns(question="q", answer="a", chain="why")
    assert load_problems(source, cot="natural", columns=columns) == [Problem("x-1", "?", "1")]


@pytest.mark.parametrize(("name", "content"), [("x.jsonl", "\n\n"), ("x.json", "[]"), ("x.json", "")])
def test_empty_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="no problems in it"):
        load_problems(str(tmp_path / name), cot="natural")


def test_an_id_that_came_before_is_refused(tmp_path: Path) -> None:
    rows = [{"id": i, "question": f"{n}?", "answer": n} for n, i in enumerate(("a", "b", "a"))]
    source = write_lines(tmp_path / "x.jsonl", *rows)
    with pytest.raises(UserError, match=r"x\.jsonl:3: id 'a' is already that of .*x\.jsonl:1;"):
        load_problems(source, cot="natural")


def test_answers_for_an_own_reward_are_not_checked(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "x.jsonl", {"question": "A poem?", "answer": "any, if it rhymes"})
    with pytest.raises(UserError, match="not a number"):
        load_problems(source, cot="program")
    [problem] = load_problems(source, cot="program", check_answers=False)
    assert problem.answer == "any, if it rhymes"
    [problem] = load_test(Data(test=source), 1, check_answers=False)
    assert problem.answer == "any, if it rhymes"


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("?")
    with pytest.raises(UserError, match=r"unknown kind of file; use \.json"):
        load_problems(str(tmp_path / "x.txt"), cot="natural")
    (tmp_path / "x.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(UserError, match="UTF-8"):
        load_problems(str(tmp_path / "x.jsonl"), cot="natural")


# Splits


def test_duplicates_and_overlaps_are_dropped_from_train_only(tmp_path: Path) -> None:
    texts = ("A?", "B?", "a?", "C?", "D?", "b ?")
    rows = [{"id": f"{i}", "question": text, "answer": 1, "chain": "1."} for i, text in enumerate(texts)]
    train = write_lines(tmp_path / "train.jsonl", *rows, {"id": "6", "question": "E?", "answer": 1})
    test = write_lines(
        tmp_path / "test.jsonl", *({"question": q, "answer": 1} for q in ("c?", "F?", "f?"))
    )
    splits = load_splits(Data(train=train, test=test, cot="natural", validation_size=1), seed=1)
    rest = splits.train + splits.validation
    assert sorted(problem.id for problem in rest) == ["0", "1", "4", "5", "6"]  # "b ?" is another text
    assert [problem.question for problem in splits.test] == ["c?", "F?", "f?"]
    without = sum(problem.id == "6" for problem in splits.train)
    assert splits.report == SplitReport(
        duplicates=1, overlaps=1, test_duplicates=1, without_chain=without
    )


def test_validation_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    forward = numbered(tmp_path / "f.jsonl", range(50))
    backward = numbered(tmp_path / "b.jsonl", range(49, -1, -1))
    test = numbered(tmp_path / "t.jsonl", range(100, 110))

    def questions(source: str, seed: int) -> tuple[list[str], list[str]]:
        splits = load_splits(Data(train=source, test=test, cot="natural", validation_size=10), seed)
        return [p.question for p in splits.train], [p.question for p in splits.validation]

    train, validation = questions(forward, 3)
    assert len(validation) == 10
    assert set(train).isdisjoint(validation)
    assert sorted(train, key=lambda text: int(text[8:-1])) == train  # the order of the file
    assert questions(backward, 3) == (train[::-1], validation[::-1])
    assert set(questions(forward, 4)[1]) != set(validation)


def test_training_on_the_test_questions_is_refused(tmp_path: Path) -> None:
    train, copy = (numbered(tmp_path / f"{name}.jsonl", range(60)) for name in "ab")
    with pytest.raises(
        UserError, match=r"every question is among those of data\.test = .*; name another split or file"
    ):
        load_splits(Data(train=train, test=copy), seed=5)


def test_smaller_subsets_lie_in_larger_ones(tmp_path: Path) -> None:
    train, test = (
        numbered(tmp_path / "a.jsonl", range(60)),
        numbered(tmp_path / "b.jsonl", range(100, 140)),
    )
    data = Data(train=train, test=test, cot="natural", validation_size=10)
    large, small = (
        load_splits(data.model_copy(update={"max_train": n, "max_test": n}), seed=5) for n in (20, 8)
    )
    assert (len(large.train), len(large.test), len(small.train), len(small.test)) == (20, 20, 8, 8)
    assert set(map(repr, small.train)) < set(map(repr, large.train))
    assert set(map(repr, small.test)) < set(map(repr, large.test))
    assert small.validation == large.validation


def test_chains_of_some_problems_are_used(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}?", "answer": "7", "chain": f"chain {i}"} for i in range(40)]
    for row in rows[:10]:
        del row["chain"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    test = numbered(tmp_path / "b.jsonl", range(100, 105))
    data = Data(train=str(tmp_path / "a.jsonl"), test=test, cot="natural", validation_size=5)
    found = [load_splits(data.model_copy(update={"max_chains": n}), seed=5) for n in (None, 12, 4, 99)]
    annotated = [{p.id for p in splits.train if p.chain} for splits in found]
    assert [len(ids) for ids in annotated[1:3]] == [12, 4]
    assert annotated[2] < annotated[1] < annotated[0] == annotated[3]
    assert [p.question for p in found[1].train] == [p.question for p in found[0].train]
    assert found[1].report.without_chain == 35 - 12
    # A larger set of questions has the same ones with chains, as long as these are the first of all.
    less = data.model_copy(update={"max_train": 35, "max_chains": 12})
    assert {p.id for p in load_splits(less, seed=5).train if p.chain} == annotated[1]


def test_new_ids_differ_between_train_and_test(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    train = numbered(tmp_path / "x.jsonl", range(9))
    test = numbered(tmp_path / "a/x.jsonl", range(20, 29))
    splits = load_splits(Data(train=train, test=test, cot="natural", validation_size=2), seed=1)
    everyone = [*splits.train, *splits.validation, *splits.test]
    assert len({problem.id for problem in everyone}) == len(everyone) == 18


@pytest.mark.parametrize("test", ["synthetic", "file"])
def test_the_test_problems_alone_are_those_of_the_splits(tmp_path: Path, test: str) -> None:
    source = numbered(tmp_path / "t.jsonl", range(100, 130)) if test == "file" else test
    synthetic = Synthetic(train_size=30, test_size=20)
    data = Data(test=source, validation_size=5, max_test=7, synthetic=synthetic)
    assert load_test(data, 3) == load_splits(data, 3).test
    assert len(load_test(data, 3)) == 7


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    train, test = numbered(tmp_path / "a.jsonl", range(10)), numbered(tmp_path / "b.jsonl", range(8, 20))
    with pytest.raises(UserError, match=r"validation_size = 8 leaves nothing .* 8 different questions"):
        load_splits(Data(train=train, test=test, cot="natural", validation_size=8), seed=1)
    assert (
        len(load_splits(Data(train=train, test=test, cot="natural", validation_size=7), seed=1).train)
        == 1
    )


def test_synthetic_splits_come_from_different_streams() -> None:
    data = Data(validation_size=20, synthetic=Synthetic(train_size=100, test_size=50))
    splits = load_splits(data, seed=42)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (80, 20, 50)
    assert {p.id.split("-")[1] for p in splits.train} == {"84"}
    assert {p.id.split("-")[1] for p in splits.test} == {"85"}
    assert splits.report == SplitReport(0, 0, 0, 0)


# Real data sets


@pytest.mark.parametrize(
    ("name", "cot", "count", "chains"),
    [
        ("mwp_reft/svamp_nl.json", "natural", 3076, 3076),
        ("mwp_reft/svamp_python_sdp.json", "program", 3043, 3043),
        ("mwp_reft/svamp_test_set.json", "program", 1000, 0),
        ("mwp_reft/gsm8k_test_set.json", "natural", 1319, 0),
        ("mwp_reft/mathqa_test_set.json", "program", 1605, 0),
        ("mwp_reft/mathqa-numeric_test_set.json", "program", 1605, 0),
        ("gsm8k/train.jsonl", "natural", 7473, 7473),
        ("gsm8k/test.jsonl", "natural", 1319, 1319),
        ("mathqa/mathqa_with_formulas_1605.json", "natural", 1605, 1605),
    ],
)
def test_real_files_are_read_whole(
    shared_data: Path, name: str, cot: Cot, count: int, chains: int
) -> None:
    problems = load_problems(str(shared_data / name), cot=cot)
    assert len(problems) == count
    assert sum(problem.chain is not None for problem in problems) == chains


def test_real_svamp_programs_give_their_answers(shared_data: Path) -> None:
    for problem in load_problems(str(shared_data / "mwp_reft/svamp_python_sdp.json"), cot="program")[
        :300
    ]:
        assert problem.chain is not None
        assert '"""' not in problem.chain
        scope: dict[str, Any] = {}
        exec(problem.chain, scope)
        assert abs(scope["solution"]() - float(problem.answer)) <= 1e-2, problem.id


def test_real_gsm8k_answers_are_numbers(shared_data: Path) -> None:
    published = load_problems(str(shared_data / "gsm8k/test.jsonl"), cot="natural")
    official = load_problems(str(shared_data / "mwp_reft/gsm8k_test_set.json"), cot="natural")
    assert [float(p.answer) for p in published] == [float(p.answer) for p in official]
    assert not any("<<" in (p.chain or "") or "####" in (p.chain or "") for p in published)


def test_real_mathqa_is_the_same_in_both_formats(shared_data: Path) -> None:
    published = load_problems(str(shared_data / "mathqa/mathqa_with_formulas_1605.json"), cot="natural")
    official = load_problems(str(shared_data / "mwp_reft/mathqa_test_set.json"), cot="natural")
    assert [(p.question, p.answer, p.choices) for p in published] == [
        (p.question, p.answer, p.choices) for p in official
    ]
    assert all(len(p.choices or ()) == 5 for p in official)


def test_real_svamp_splits(shared_data: Path) -> None:
    folder = shared_data / "mwp_reft"
    data = Data(train=str(folder / "svamp_python_sdp.json"), test=str(folder / "svamp_test_set.json"))
    splits = load_splits(data, seed=42)
    assert splits.report == SplitReport(duplicates=9, overlaps=0, test_duplicates=0, without_chain=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2834, 200, 1000)
