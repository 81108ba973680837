"""Reading and comparing final answers: tables of nasty cases, and every gold solution there is."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from reftune.grading.answers import answers_equal, check_answer, judge_answer
from reftune.grading.choices import extract_choice
from reftune.grading.extraction import extract_natural, reasoning, without_answer
from reftune.grading.quantities import parse_number
from reftune.problem import Problem

TRIGGER = "\nTherefore, the answer is: "
CHOICES = ("38", "27.675", "30 %", "data inadequate", "none of these")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 + 2 = 7\nTherefore, the answer is: 7", "5 + 2 = 7\n"),
        ("5 + 2 = 7\n\nTherefore,  the answer\nis:7\n", "5 + 2 = 7\n\n"),
        (
            "A\nTherefore, the answer is: 1\nTherefore, the answer is: 2",
            "A\nTherefore, the answer is: 1\n",
        ),
        ("Therefore, the answer is: 7", ""),
        ("The answer is 5 + 2 = 7.", "The answer is 5 + 2 = 7."),
    ],
)
def test_the_reasoning_is_what_comes_before_the_last_trigger(text: str, expected: str) -> None:
    assert reasoning(text, TRIGGER) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 + 2 = 7\nTherefore, the answer is: 7", "7"),
        ("Therefore, the answer is: 7", "7"),  # no line before it
        ("It is.\n\nTherefore,  the answer\nis:   $7.\n", "$7"),
        ("\nTherefore, the answer is: 1\nTherefore, the answer is: 2", "2"),
        ("\nTherefore, the answer is: 7\n\nQuestion:\nHow many 9s?", "7"),  # no end of text learnt yet
        ("\nTherefore, the answer is: 1,000", "1,000"),
        ("\nTherefore, the answer is: ", None),
        ("\nTherefore, the answer is: 1\nTherefore, the answer is:\n", None),  # the last one counts
        ("", None),
        ("7", None),
        ("So Anna has 7.", None),
        # What other systems write.
        ("48+24 = 72\n#### 72", "72"),
        ("#### 71\nor rather\n#### 72", "72"),
        (r"Hence $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{1", None),
        ("Therefore, the answer is <203>.", "203"),
        ("The answer is 72. There were 5 more.", "72"),
        ("the answer is 5. No, the answer is 6.", "6"),
        ("**Answer:** 72", "72"),
        ("The final answer is **72**.", "72"),
        (r"The answer is $72$", "72"),
        # Precedence: the trigger, then ####, then boxed, then "answer is".
        (r"\boxed{1} #### 2", "2"),
        (r"the answer is 1, so \boxed{2} and the answer is 3", "2"),
        ("#### 1\nTherefore, the answer is: 2", "2"),
        (r"Therefore, the answer is: $\boxed{72}$.", "72"),
    ],
)
def test_extract_natural(text: str, expected: str | None) -> None:
    assert extract_natural(text, TRIGGER) == expected


def test_extract_natural_with_another_trigger() -> None:
    assert extract_natural("The answer is 3\n=> 4", "=> ") == "4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("72", 72),
        ("72.", 72),
        (" 72 ", 72),
        ("3.50", 3.5),
        (".5", 0.5),
        ("-.5", -0.5),
        ("+5", 5),
        ("007", 7),
        ("-2", -2),
        ("- 2", -2),
        ("\u22122", -2),  # the minus sign of typography
        ("1,000", 1000),
        ("1,234,567.89", 1234567.89),
        ("$5", 5),
        ("-$5", -5),
        ("$-5", -5),
        ("$1,354.00", 1354),
        ("5 €", 5),
        ("US$5", 5),
        ("rs . 50", 50),
        ("Rs.1,500", 1500),
        ("1/2", 0.5),
        ("1 / 2", 0.5),
        ("-1/2", -0.5),
        ("3 1/2", 3.5),
        ("-3 1/2", -3.5),
        ("½", 0.5),
        ("3½", 3.5),
        ("50%", 50),
        ("50 percent", 50),
        ("72 apples", 72),
        ("5 dollars.", 5),
        ("60 km/h", 60),
        ("10am", 10),
        ("about 72 of them", 72),
        ("**72**", 72),
        ("(72)", 72),
        ("25 cm^2", 25),
        ("25 m²", 25),
        ("288 cm 2", 288),  # how MathQA writes it
        ("x = 5", 5),
        ("48 + 24 = 72", 72),
        ("1e3", 1000),
        ("1.5e-3", 0.0015),
        ("9" * 150, float("9" * 150)),
    ],
)
def test_parse_number(text: str, expected: float) -> None:
    assert parse_number(text) == pytest.approx(expected, rel=1e-12)


# fmt: off
NO_NUMBER = [
    "", " ", ".", "-", "$", "nan", "inf", "-Infinity", "1e999", "1e99999",
    "between 3 and 5", "3 or 5", "3, 5", "5-10", "10 -5", "3 : 4", "10:30", "1/2/2020", "1.2.3",
    "1,00", "12,34", "1,0000", "1 00", "5/0", "0/0", "5 ft 2 in",
    "3x", "x + 5", "5 - x", "2*3", "3i", "x > 5", "x >= 5",
    "1_000", "x1", "H2O", "a/2", "km / 2",
]
HOSTILE = [
    "9" * 10**6, "1,000" * 10**5, "-" * 10**5, " " * 10**6 + "5" * 300, r"\frac{" * 10**4, "<" * 10**5,
    "9^{9^{9^{9}}}", "{9}^{{9}^{99}}", "((9^{99})^{99})^{99}", r"\binom{1000000000}{500000000}",
    r"\sum_{i=1}^{1000000000} \frac{1}{i}", r"\frac{100000000!}{3}",
    "{" * 150, "(" * 190, r"\frac{1}{0}",
]
# fmt: on


@pytest.mark.parametrize("text", NO_NUMBER)
def test_parse_number_refuses(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\frac{1}{2}", 0.5),
        (r"-\dfrac{3}{4}", -0.75),
        (r"3\frac{1}{2}", 3.5),
        (r"\sqrt{2}", 2**0.5),
        (r"2\pi", 6.283185307),
        (r"x = \frac12", 0.5),
        (r"\frac{1}{2}\text{ cups}", 0.5),
        (r"\$1{,}000", 1000),
        (r"50\%", 50),
        (r"\( 72 \)", 72),
        (r"72\text{ apples}", 72),
        (r"25\ \text{cm}^2", 25),
        (r"90^\circ", 90),
        (r"2 \times 10^3", 2000),
        (r"2^{10}", 1024),
    ],
)
def test_parse_number_reads_latex(text: str, expected: float) -> None:
    assert parse_number(text) == pytest.approx(expected)


def test_parse_number_reads_latex_outside_the_main_thread() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(parse_number(r"\frac{7}{8}")))
    thread.start()
    thread.join()
    assert found == [0.875]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_hostile_texts_neither_raise_nor_take_long(text: str) -> None:
    start = time.perf_counter()
    assert parse_number(text) is None
    assert extract_choice(text, CHOICES) is None
    assert not answers_equal(text, "x^2 + 1")
    extract_natural(text, TRIGGER)
    extract_natural(TRIGGER * 3 + text, TRIGGER)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("b", "b"),
        ("B", "b"),
        ("(b)", "b"),
        ("b )", "b"),
        ("b.", "b"),
        ("<b>", "b"),
        ("option b", "b"),
        ("b) 27", "b"),
        ("b ) 27.675", "b"),
        ("B. None of these", None),  # the text is that of another option
        ("27.675", "b"),
        ("$27.68", "b"),
        ("30", "c"),
        ("30%", "c"),
        ("Data  inadequate.", "d"),
        ("none of these", "e"),
        ("a ) 38 , b ) 27.675 , c ) 30 %", None),
        ("(b) or (c)", None),
        ("b or c", None),
        ("f", None),
        ("z) 5", None),
        ("28", None),
        ("a train", None),
        ("", None),
        (38.0, "a"),
        (27.68, "b"),
        (27.7, None),
    ],
)
def test_extract_choice(answer: str | float, expected: str | None) -> None:
    assert extract_choice(answer, CHOICES) == expected


def test_extract_choice_takes_the_nearest_number_unless_two_tie() -> None:
    assert extract_choice(0.365, ("0.36", "0.365", "3.6")) == "b"
    assert extract_choice(2778.0, ("2000", "2778", "2299", "2778")) is None
    assert extract_choice("8 pm", ("8 am", "8 pm")) == "b"
    assert extract_choice("anything", ()) is None


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        (72.0, "72", True),
        (72.01, "72", True),  # the difference exceeds 0.01 in binary
        (1.01, "1.00", True),
        (72.011, "72", False),
        (1e15 + 1, "1e15", False),
        (-2.0, "2", False),
        (70000.0, "70,000", True),
        (0.5, "1/2", True),
        (0.5, "50%", False),  # a percentage is its number
        ("72 apples", "72", True),
        ("apples", "72", False),
        (float("nan"), "72", False),
        (float("inf"), "72", False),
        ("Tuesday.", "tuesday", True),
        ("Monday", "tuesday", False),
        (r"\text{Tuesday}", "Tuesday", True),
        ("10 : 30", "10:30", True),
        ("1 + x^2", "x^2 + 1", True),
        ("x^2 + 2", "x^2 + 1", False),
        (r"\frac{x}{2}", "x/2", True),
        ("cat/2", "act/2", False),
        (5.0, "x^2", False),
    ],
)
def test_answers_equal(answer: str | float, truth: str, expected: bool) -> None:
    assert answers_equal(answer, truth) is expected


def test_answers_equal_compares_options() -> None:
    assert answers_equal("B", "b", CHOICES)
    assert answers_equal(27.675, "(b)", CHOICES)
    assert not answers_equal("a", "b", CHOICES)
    assert not answers_equal("f", "f", CHOICES)  # no such option on either side


@pytest.mark.parametrize(
    ("answer", "choices", "cot", "words"),
    [
        ("72", None, "program", None),
        ("1,000", None, "program", None),
        ("Tuesday", None, "natural", None),
        ("b", CHOICES, "program", None),
        ("Tuesday", None, "program", "is not a number"),
        ("between 3 and 5", None, "program", "is not a number"),
        ("", None, "natural", "is empty"),
        (" . ", None, "natural", "is empty"),
        ("nan", None, "natural", "not a finite number"),
        ("-inf", None, "natural", "not a finite number"),
        ("9" * 400, None, "natural", "longer than 200"),
        ("f", CHOICES, "natural", "from a to e"),
        ("b", ("1",), "natural", "1 choices"),
    ],
)
def test_check_answer(answer: str, choices: tuple[str, ...] | None, cot: str, words: str | None) -> None:
    complaint = check_answer(Problem("q7", "?", answer, None, choices), cot)  # type: ignore[arg-type]
    if words is None:
        assert complaint is None
    else:
        assert complaint is not None
        assert words in complaint
        assert "problem q7" in complaint


def test_every_gsm8k_solution_is_right_and_an_altered_one_wrong(shared_data: Path) -> None:
    solutions = [
        json.loads(line)["answer"]
        for name in ("train.jsonl", "test.jsonl")
        for line in (shared_data / "gsm8k" / name).read_text(encoding="utf-8").splitlines()
    ]
    assert len(solutions) == 7473 + 1319
    for solution in solutions:
        chain, truth = re.sub("<<.*?>>", "", solution).split("\n#### ")
        for text in (solution, f"{chain}{TRIGGER}{truth}"):
            answer = extract_natural(text, TRIGGER)
            assert answer is not None
            assert answers_equal(answer, truth), solution
            # The altered truth, made without the code under test.
            assert not answers_equal(answer, str(int(truth.replace(",", "")) + 1)), solution


def test_svamp_chains_give_their_answers(shared_data: Path) -> None:
    rows = json.loads((shared_data / "mwp_reft" / "svamp_nl.json").read_text(encoding="utf-8"))
    answers = [extract_natural(row["answer_cot"], TRIGGER) for row in rows]
    wrong = [
        row["item_id"]
        for row, answer in zip(rows, answers, strict=True)
        if not answers_equal(answer or "", row["answer_value"])
    ]
    # Two annotations say otherwise than their value: 9 for 8.93, 69.32% for 69.4.
    assert len(rows) == 3076
    assert len(wrong) == 2


def test_mathqa_letters_and_lists(shared_data: Path) -> None:
    path = shared_data / "mathqa" / "mathqa_with_formulas_1605.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    for row in rows:
        choices = [text.strip(" ,") for text in re.split(r"\b[a-e] \)", row["options"])[1:]]
        if len(choices) != 5 or not all(choices):
            continue  # written in another way, which the loader reads
        letter = row["correct"]
        assert answers_equal(letter.upper(), letter, choices)
        assert answers_equal(f"{letter} ) {choices['abcde'.index(letter)]}", letter, choices)
        assert not answers_equal("abcdea"["abcde".index(letter) + 1], letter, choices)
        assert extract_choice(row["options"], choices) is None


@pytest.mark.parametrize("answer", ["b", "B", " e. "])
def test_a_letter_without_choices_is_no_answer(answer: str) -> None:
    for cot in ("natural", "program"):
        complaint = check_answer(Problem("7", "Which one?", answer), cot)  # type: ignore[arg-type]
        assert complaint is not None
        assert "problem 7" in complaint
        assert "is a letter, but the question has no choices" in complaint
    assert check_answer(Problem("7", "Which one?", answer, choices=tuple("12345"))) is None
    assert check_answer(Problem("7", "Which unknown?", "x")) is None


LONG = 100_000
NASTY = [
    "{" * LONG,
    "\\boxed{" * 14_000,
    "\\boxed{1}" * 11_000,
    "9" * LONG,
    "9 " * 50_000,
    "2" + "^2" * 50_000,
    "\\sqrt{" * 14_000,
    "√" * LONG + "2",
    "\\frac{1}{" * 11_000,
    "#### a\n" * 14_000,
    "answer is " * 10_000,
    "<answer></answer>" * 6_000,
    "</s>" * 25_000,
    "<|" * 50_000,
    "<|" + "end" * 30_000,
    "\n" * LONG,
    "answer" + " " * LONG + "is",
    "Therefore," + " " * LONG + "the",
    "A. " * 30_000,
    "5 " + "km " * 30_000,
    "1e" * 50_000,
    "1:" * 50_000,
    "½" * LONG,
    "|" * LONG,
    "x = 1 or " * 11_000,
    "9**9**9",
    "2^{99999999}",
    "10^10^10^10",
    "999999!",
    "\\sum_{k=1}^{1000000000} k^2",
    "\\binom{999999}{499999}",
    "(x+y+z+w)^{40}",
]


@pytest.mark.parametrize("text", NASTY, ids=lambda text: text[:12])
def test_no_text_takes_long_or_raises(text: str) -> None:
    begun = time.process_time()
    for answer in (text, f"The answer is {text[:180]}", f"#### {text[:180]}"):
        found = extract_natural(answer, TRIGGER)
        for truth in ("72", "x^2+1", "(1, 2)"):
            judge_answer(found or "", truth)
    assert (
        time.process_time() - begun < 1.0
    )  # nine judgements; the quadratic ones took five seconds each


# What instruct models write: Qwen2.5, Llama 3, SmolLM2, Gemma, DeepSeek-R1 and its distilled models.
MANY_MARKS = "It is \\boxed{72}.\nThe answer is 71, I think.\n#### 70"


@pytest.mark.parametrize(
    ("style", "text", "expected"),
    [
        ("boxed", "Adding:\n\\[ 48 + 24 = 72 \\]\nSo she sold \\(\\boxed{72}\\) clips.", "72"),
        ("boxed", r"The final answer is: $\boxed{72}$.", "72"),
        ("boxed", "**Final Answer**\n\\[\n\\boxed{72}\n\\]", "72"),
        ("boxed", r"Thus, \boxed{72 \text{ clips}}", r"72 \text{ clips}"),
        ("boxed", r"It costs $\boxed{\$72.50}$", r"\$72.50"),
        ("boxed", r"<think>Perhaps \boxed{70}?</think>It is \boxed{72}.<|im_end|>", "72"),
        ("boxed", "**Answer:** 72 clips", "72 clips"),
        ("boxed", "#### 72", "72"),
        ("boxed", "The answer is 72.", "72"),
        ("boxed", "So 48 + 24 = 72\nTherefore, the answer is: 72", "72"),
        ("boxed", "I put it within \\boxed{}.", None),
        ("boxed", MANY_MARKS, "72"),
        ("hashes", MANY_MARKS, "70"),
        ("answer_is", MANY_MARKS, "71, I think"),
        (None, MANY_MARKS, "70"),
        ("trigger", MANY_MARKS, "70"),
        ("hashes", "1. 48 / 2 = 24\n\n#### 72 clips", "72 clips"),
        ("hashes", "### Step 1\nAdd.\n\nThe final answer is $\\boxed{72}$.", "72"),
        ("answer_is", "She sold 72.\n\nThe answer is 72.<end_of_turn>", "72"),
        ("answer_is", "**Answer:** 72", "72"),
        ("answer_is", "So the answer is \\boxed{72}.", "72"),
        ("answer_is", "The total is $\\boxed{72}$", "72"),
    ],
)
def test_the_mark_of_the_answer_style_comes_first(style: Any, text: str, expected: str | None) -> None:
    assert extract_natural(text, TRIGGER, style) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48 + 24 = 72.\n#### 72", "48 + 24 = 72."),
        ("48 + 24 = 72. The answer is 72.", "48 + 24 = 72."),
        ("48 + 24 = 72.\n\nTherefore, the answer is: 72", "48 + 24 = 72."),
        ("48 + 24 = 72.\nThe final answer is $\\boxed{72}$.", "48 + 24 = 72."),
        ("She sold $48 + 24 = \\boxed{72}$ clips.", "She sold $48 + 24 = 72$ clips."),
        ("48 + 24 = 72.\n\n**Final Answer**\n\\[\n\\boxed{72}\n\\]", "48 + 24 = 72."),
        ("48 + 24 = 72.\n\n**Answer:** 72 clips", "48 + 24 = 72."),
        ("48 + 24 = 72. <answer>72</answer>", "48 + 24 = 72."),
        ("The answer is 72. For 48 + 24 = 72.", "For 48 + 24 = 72."),
        ("<think>Is the answer 71? No.</think>\n48 + 24 = 72. The answer is 72.",
         "<think>Is the answer 71? No.</think>\n\n48 + 24 = 72."),
        ("48 + 24 is 72.", "48 + 24 is 72."),
        ("", ""),
    ],
)  # fmt: skip
def test_the_sentence_with_the_answer_is_taken_out_of_a_solution(text: str, expected: str) -> None:
    assert without_answer(text) == expected


@pytest.mark.parametrize("ending", ["The answer is \\boxed{7}.", "#### 7", "The answer is 7."])
def test_the_reasoning_of_every_style_is_what_comes_before_the_answer(ending: str) -> None:
    assert reasoning(f"5 + 2 = 7.\n{ending}", TRIGGER) == "5 + 2 = 7."
