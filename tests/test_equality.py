"""Which answers are equal: a table for each kind of truth, right answers and tempting wrong ones.

A row is the truth, then the answers that are right, then those that are wrong.
"""

# ruff: noqa: RUF001  # the look-alikes are meant

from __future__ import annotations

import random
import time

import pytest

from reftune.grading.answers import answers_equal, same_answer
from reftune.grading.choices import extract_choice
from reftune.grading.equality import compare
from reftune.grading.extraction import extract_natural

# fmt: off
NUMBERS = [
    ('5', [
        '5.', '~5', '≈5', '5 degrees above zero', '5m', '5 m', '5 km', '5!', '5 because 2+3=5',
        '5, since 2 + 3 = 5', '5 (because 2 + 3 = 5)', '5, not 6', '5 rather than 6', '5 apples',
        '$5.00', '5 USD', '€5',
     ], [
        '－5', '⁻5', '- 5', 'negative 5', '5 degrees below zero', '(-5)', 'at least 5',
        'at most 5', 'more than 5', '5 or more', 'up to 5', 'over 5', 'under 5', 'less than 5',
        '5 cubed', '5^2', '5²', 'twice 5', 'double 5', 'the square of 5', 'not 5', 'it is not 5',
        '5 or 6', '5 and 6', '5, 6', 'either 5 or 6', 'between 4 and 6', '5-6', '5 to 6',
        '5 as well as 6',
     ]),
    ('12500', ['12 500', "12'500"], []),
    ('125000', ['1,25,000'], []),
    ('12500000', ['1,25,00,000'], []),
    ('1234567', ['1 234 567', '1 234 567.00'], []),
    ('1000', ['1 000 dollars'], []),
    ('3000', ['3 000'], []),
    ('12', ['١٢', '१२', 'a dozen'], []),
    ('-5', [
        '−5', '- 5', 'minus $5', '-$5', '5 degrees below zero', '5 below 0', '(-5)',
     ], [
     ]),
    ('-5.0', ['minus five', 'negative five'], ['five', 'minus five or six']),
    ('1.375', ['1⅜', '1 3/8', r"1 \frac{3}{8}", r"1\tfrac38"], []),
    ('0.5', [r"\cfrac{1}{2}"], ['50%']),
    ('0.375', ['⅜'], []),
    ('-0.375', ['-⅜'], []),
    ('0.3333', [r"0.\overline{3}", '1/3'], []),
    ('1.1666', [r"1.1\overline{6}"], []),
    ('0.333', ['0.(3)', '0.3̅'], []),
    ('3.5', ['3 and a half', '3½'], []),
    ('3', [], ['3½', '3 million']),
    ('24', ['2 dozen eggs'], []),
    ('2', [], ['2 dozen']),
    ('3000000', ['3 million'], ['3 billion']),
    ('3 million', ['3,000,000', '3000000'], ['3 billion', '3']),
    ('1500000', ['1.5 million dollars'], []),
    ('5000', ['5k', '$5K', '5 thousand'], []),
    ('1200000000', ['1.2bn', '$1.2 B'], []),
    ('5000000', ['$5m'], []),
    ('500000', ['half a million'], []),
    ('250', ['two hundred and fifty', 'Two hundred fifty dollars'], ['two hundred', 'two or fifty']),
    ('25', ['5^2', '5²', '25 square feet', '25 cm squared'], []),
    ('16', [], ['sqrt(16)', '√16', 'square root of 16']),
    ('4', ['sqrt(16)', '√16'], []),
    ('10', [], ['10% of 50', 'one tenth of 10']),
    ('120', [], ['5!']),
    ('$5', [], ['€5', '5 cents']),
    ('5 km', ['5 kilometers'], ['5 m']),
    ('5 hours', ['5'], ['5 minutes']),
    ('25 cm^2', ['25 cm²'], []),
    ('25 square feet', ['25'], []),
    ('5%', ['5'], []),
    ('50%', [], ['0.5']),
    ('10am', [], ['10']),
    ('10 AM', ['10:00 AM'], ['10 PM', '10']),
    ('10 PM', ['22:00'], []),
    ('8:30 PM', ['8:30 p.m.'], ['8:30']),
    ('8:30', ['08:30'], []),
    ('8:30 AM', ['The time is 8:30 AM'], []),
    ('Monday the 3rd', [], ['Monday the 4th']),
    ('Friday the 3rd', ['Friday, the 3rd'], ['3', 'Friday']),
    ('March 3', ['March 3rd'], ['March 4', 'April 3']),
    ('at least 5', ['at least 5', '5 or more', 'no fewer than 5'], ['5']),
    ('at least -5', [], ['at least 5']),
    ('at most 5', ['no more than 5'], []),
    ('more than 5', [], ['less than 5']),
    ('3rd', ['3rd place'], ['4th']),
    ('10% profit', ['10%'], ['10% loss']),
    ('5 north', [], ['5 south']),
    ('2:3', ['2 to 3'], ['4:6', '2/3', '2:3:4']),
]
EQUATIONS = [
    ('5', [
        'x=5', '$x = 5$', 'x = 2 + 3 = 5', '2 + 3 = 5', '5 = 2 + 3', 'x = 5, because 5 + 3 = 8',
        'f(2) = 5', 'Total = 5', 'Total cost = $5', 'n ≈ 5',
     ], [
        'x = 6', '2x = 5', 'x + 2 = 5', 'x^2 = 5', '-x = 5', 'x/2 = 5', 'x = 5 or x = 6',
        'x = 5, y = 3', 'x > 5', 'x ≥ 5', 'x ≠ 5', 'x = 2 + 3', 'half of x = 5', 'xy = 5',
        r"\sqrt{x} = 5", r"\sin x = 5", '3 = 5',
     ]),
    ('10', [], ['2x = 10']),
    ('3', [], ['x = 5, y = 3', r"\pm 3", '±3']),
    ('8', [], ['x = 5, because 5 + 3 = 8']),
    ('x = 5', ['5', 'x = 5', '5 = x'], ['y = 5', 'x = 4']),
    ('x = 2 or x = -3', [
        'x = 2, x = -3', '2, -3', 'x = 2 and x = -3', 'x = 2 or -3',
     ], [
        'x = 2', 'x = 2 or x = 3', 'x = 2 or x = -3 or x = 5',
     ]),
    (r"x = \pm 3", ['x = 3 or x = -3'], []),
    ('x = ±3', ['±3'], []),
    (r"\pm 3", ['3, -3'], ['3']),
    ('x = 5, y = 3', ['y = 3, x = 5', 'x = 5 and y = 3'], ['x = 3, y = 5', '5, 3']),
    ('y = 2x + 1', ['2x + 1', 'y = 1 + 2x', 'y - 2x = 1', '2x - y + 1 = 0'], ['y = 2x - 1', '1']),
    ('2x + 3y - 7 = 0', ['4x + 6y = 14'], ['0', '0 = 0']),
    ('x^2 + y^2 = 25', ['y^2 + x^2 = 25', 'x^2 + y^2 - 25 = 0'], ['25', 'x^2 - y^2 = 25']),
    ('(x-1)^2 + (y+2)^2 = 9', ['(y+2)^2 + (x-1)^2 = 3^2'], ['(x-1)^2 + (y-2)^2 = 9']),
    (r"A = \pi r^2", ['A = πr²'], []),
    ('f(x) = x^2', ['x^2'], []),
    ('x > 3', [
        '3 < x', r"(3, \infty)", '2x > 6', '-x < -3',
     ], [
        'x < 3', 'x >= 3', '-x > -3', '3',
     ]),
    (r"x \ge 3", ['[3, ∞)'], [r"y \ge 3"]),
    ('2 < x < 5', ['5 > x > 2', '(2, 5)'], [r"2 < x \le 5"]),
    ('(2, 5)', ['2 < x < 5'], []),
    ('[2, 5)', [r"2 \le x < 5"], ['2 ≤ x ≤ 5']),
    (r"x \neq 2", [r"x \ne 2"], ['x = 2']),
]
STRUCTURES = [
    ('1, 2, 4', [
        '1,2,4', '1, 2 and 4', '{4, 2, 1}', r"\{1,2,4\}", '[1, 2, 4]',
     ], [
        '1, 2, 4, 5', '1, 2, 5', '4', '124',
     ]),
    ('1, 2', [], ['1', '(1, 2)']),
    ('343 and 512', ['512 and 343'], ['343', '855']),
    (r"\{1, 3, 5\}", ['{5, 3, 1}', '1, 3, 5'], ['(1, 3, 5)']),
    ('(3, 4)', [
        '(3.0, 4)', '(x, y) = (3, 4)', r"\left( 3, 4 \right)",
     ], [
        '3, 4', '[3, 4]', '(3, 4, 5)', 'x = 3, y = 4',
     ]),
    (r"(\frac12, -3)", ['(0.5, -3)'], ['(0.5, 3)']),
    ('(0, 1)', [], ['(0,1]']),
    ('D = (0, 1)', ['(0, 1)'], []),
    (r"[0, \infty)", ['[0, ∞)'], []),
    (r"(-\infty, 2) \cup (2, \infty)", [
        '(-∞, 2) ∪ (2, ∞)',
     ], [
        r"(-\infty, 2)", r"(-\infty, 2] \cup (2, \infty)", r"(-\infty, \infty)",
     ]),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", [
        r"\begin{bmatrix}1&2\\3&4\end{bmatrix}",
     ], [
        r"\begin{pmatrix} 1 & 2 \\ 4 & 3 \end{pmatrix}",
     ]),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", [], [r"\begin{pmatrix} 1 & 2 \end{pmatrix}"]),
    (r"\begin{pmatrix} 1/2 \\ 2 \end{pmatrix}", [
        r"\begin{pmatrix} 0.5 \\ 2 \end{pmatrix}",
        r"\begin{pmatrix} \frac{1}{2} \\[4pt] 2 \end{pmatrix}",
     ], [
     ]),
    ('Alice and Bob', ['Bob and Alice', 'Alice, Bob'], ['Bob']),
    ('red, blue', ['blue and red'], []),
    ('1011_2', ['1011_{2}', '1011₂', '1011 base 2'], ['1011', '11', '1011_3']),
    ('57_8', ['57_{8}'], []),
    ('2A_{16}', ['2a_{16}'], []),
]
EXPRESSIONS = [
    (r"2\pi", ['2π', '6.28', '2*pi'], []),
    (r"\sqrt{2}", ['√2'], ['√3', '2']),
    (r"2\sqrt{3}", ['√12'], ['3√2']),
    ('x^2+1', ['x²+1', '1 + x^2'], ['x²-1', 'x^3+1']),
    ('(x+1)^2', ['x^2+2x+1'], ['x^2+1']),
    (r"\frac{x}{2}", ['x/2'], ['2/x']),
    (r"\frac{x+1}{2}", ['(x+1)/2'], []),
    (r"\sqrt{x^2}", [], ['x']),
    (r"\infty", ['∞'], []),
    (r"-\infty", [], ['∞']),
    ('3+4i', ['4i+3'], ['3-4i', '3', '7']),
    ('300000', ['3 × 10^5', '3 x 10^5'], []),
    ('320000', ['3.2 x 10^5'], ['3.2 × 10⁴']),
    ('0.00032', ['3.2×10⁻⁴'], []),
    ('10!', ['3628800'], ['10', '9!']),
    (r"45^\circ", ['45', '45°'], []),
    ('45', ['45 degrees'], []),
    ('45°', [], ['45 radians']),
    (r"\frac{1}{2}", ['1/2'], ['2']),
    ('2^{10}', ['1024'], []),
    ('e^{2x}', ['e^{2x}'], []),
    (r"\ln 2", [r"\ln(2)", '0.69'], []),
    (r"\log_2 8", ['3'], []),
    ('12345678901234567890', [
        '12345678901234567890', '12,345,678,901,234,567,890',
     ], [
        '12345678901234567891',
     ]),
    ('9007199254740993', ['9007199254740993', '9007199254740993.0'], ['9007199254740992']),
]
TEXTS = [
    ('yes', ['Yes', 'Yes, because 5 > 3'], ['No', 'yes and no']),
    ('no', ['No, it is not.'], []),
    ('True', ['true'], []),
    ('Evelyn', [r"\text{Evelyn}", '**Evelyn**'], ['Evelyn Smith']),
    ('St. Louis', ['St Louis'], []),
    ('the red ball', ['red ball'], []),
    ('Tuesday', ['on Tuesday'], ['Tue']),
]
# fmt: on
TABLES = NUMBERS + EQUATIONS + STRUCTURES + EXPRESSIONS + TEXTS


@pytest.mark.parametrize(("truth", "right", "wrong"), TABLES)
def test_right_answers_are_accepted_and_wrong_ones_refused(
    truth: str, right: list[str], wrong: list[str]
) -> None:
    assert [answer for answer in right if not answers_equal(answer, truth)] == []
    assert [answer for answer in wrong if answers_equal(answer, truth)] == []


def spellings(number: int) -> list[str]:
    """Return ten ways to write an integer of four to six digits."""
    sign, size = ("-" if number < 0 else ""), abs(number)
    wide = str(size).translate({ord("0") + n: 0xFF10 + n for n in range(10)})
    return [
        f"{number}", f"{number:,}", f"{number:,}".replace(",", "\u202f"), f"{sign}${size:,}.00",
        f"{'negative ' if sign else ''}{size} apples", f"\u2212{size}" if sign else f"+{size}",
        rf"x = {number}", rf"{sign}\frac{{{2 * size}}}{{2}}", f"{sign}{wide}",
        f"{number} = y, since 2 + 3 = 5",
    ]  # fmt: skip


def test_a_right_number_is_accepted_in_ten_spellings_and_a_wrong_one_in_none() -> None:
    chance = random.Random(5)
    for _ in range(40):
        number = chance.choice((-1, 1)) * chance.randint(1000, 999_999)
        other = chance.choice((-number, number + chance.choice((-1, 1, 10)), number * 10, number * 1000))
        assert [text for text in spellings(number) if not answers_equal(text, f"{number}")] == []
        assert [text for text in spellings(other) if answers_equal(text, f"{number}")] == []


# fmt: off
ANIMALS = ["a hen", "a goat", "a cow", "a bee"]
FOUND = [  # completion, truth, options, whether it is right
    ('So \\boxed{3} million people.', '3', None, False),
    ('So \\boxed{3} million people.', '3000000', None, True),
    ('So x = -\\boxed{5}.', '5', None, False),
    ('So x = -\\boxed{5}.', '-5', None, True),
    ('<think>\\boxed{5}</think> The answer is 7.', '7', None, True),
    ('<think>\\boxed{5}</think> The answer is 7.', '5', None, False),
    ('<think>\\boxed{5}</think>\n\nSo 7 apples are left.', '5', None, False),
    ('<think>The answer is 5.</think>', '5', None, True),
    ('<think>7 or 8?</think>\n\n7', '7', None, True),
    ('<think>7 or 8?</think>\n\n7 or 8', '8', None, False),
    ('<think>7 or 8?</think>\nFirst 3.\nThen 7', '7', None, False),
    ('7', '7', None, False),
    ('<think>7</think>', '7', None, False),
    ('#### Step 1: add\n3+4\n#### Final Answer\n7', '7', None, True),
    ('## Final Answer:\n\n**7**', '7', None, True),
    ('### Answer\n7 apples', '7', None, True),
    ('**Final Answer:** $\\boxed{7}$', '7', None, True),
    ('Final answer: 7<|eot_id|>', '7', None, True),
    ('The answer is 7</s>', '7', None, True),
    ('The answer is 7.<end_of_turn>\n<start_of_turn>user\nThe answer is 8.', '7', None, True),
    ('The answer is 7.<|im_end|>\n<|im_start|>user', '7', None, True),
    ('#### 7<|endoftext|>', '7', None, True),
    ('\\boxed{} \\boxed{7}', '7', None, True),
    ('\\boxed{7} and so \\boxed{ }', '7', None, True),
    ('\\boxed{\\boxed{7}}', '7', None, True),
    ('\\boxed{\\text{7 apples}}', '7', None, True),
    ('\\boxed{\\dfrac{1}{2}}', '0.5', None, True),
    ('\\fbox{\\frac{3}{4}}', '0.75', None, True),
    ('\\boxed 9', '9', None, True),
    ('\\boxed9', '9', None, True),
    ('The answer is Dr. Smith. He knows.', 'Dr. Smith', None, True),
    ('The answer is the U.S. because it is big.', 'U.S.', None, True),
    ('The answer is 10 a.m.', '10 a.m.', None, True),
    ('The answer is Mt. Everest.', 'Mt. Everest', None, True),
    ('The answer is J. K. Rowling.', 'J. K. Rowling', None, True),
    ('The answer is 7! Great.', '7', None, True),
    ('**The answer is 7**', '7', None, True),
    ('The answer is *7*.', '7', None, True),
    ('The answer is __7__.', '7', None, True),
    ('The answer is: ```7```', '7', None, True),
    ('The answer to the question is 7.', '7', None, True),
    ('The correct answer is 7.', '7', None, True),
    ('Answer\n7', '7', None, True),
    ('answer: -7', '7', None, False),
    ('<answer>7</answer>', '7', None, True),
    ('<answer>\n\n7\n</answer>', '7', None, True),
    ('<answer>The answer is 7</answer>', '7', None, True),
    ('<answer>\\boxed{7}</answer>', '7', None, True),
    ('<answer></answer>\nThe answer is 7.', '7', None, True),
    ('The answer is 7 (see above).', '7', None, True),
    ('Therefore, the answer is: 7\n\nLet me check: 3+4=8', '7', None, True),
    ('#### Tuesday', 'Tuesday', None, True),
    ('#### 1. Count\nfoo\n#### 2. Add\nbar\n\\boxed{7}', '7', None, True),
    ('The answers are 3 and 4.', '3, 4', None, True),
    ('The answer is 72.\n\nThe answer is 73 if we count wrongly.', '72', None, False),
    ('Answer: B because it is a goat', 'B', ANIMALS, True),
    ('The answer is B since A is wrong.', 'B', ANIMALS, True),
    ('The answer is (B), because C is a cow.', 'B', ANIMALS, True),
    ('The answer is B or C.', 'B', ANIMALS, False),
    ('The answer is B and C.', 'B', ANIMALS, False),
    ('The answer is both B and C.', 'B', ANIMALS, False),
    ('Answer: B, C', 'B', ANIMALS, False),
    ('Answer: A, B', 'B', ANIMALS, False),
    ('Answer: A, B', 'A', ANIMALS, False),
    ('Answer: A, because B has no legs', 'A', ANIMALS, True),
    ('Answer: B/C', 'B', ANIMALS, False),
    ('Answer: A or B', 'B', ANIMALS, False),
    ('Answer: B, a hen', 'B', ANIMALS, False),
    ('Answer: (B) a hen', 'B', ANIMALS, False),
    ('Answer: B. a goat, not C', 'B', ANIMALS, True),
    ('Answer: not B', 'B', ANIMALS, False),
    ('Answer: \\text{B}', 'B', ANIMALS, True),
    ('\\boxed{\\textbf{(B)}}', 'B', ANIMALS, True),
    ('\\boxed{\\textbf{(B) } a goat}', 'B', ANIMALS, True),
    ('Answer: **B**', 'B', ANIMALS, True),
    ('**Answer**: B', 'B', ANIMALS, True),
    ('Answer: （B）', 'B', ANIMALS, True),
    ('Answer: $\\boxed{B}$', 'B', ANIMALS, True),
    ('Answer: option B.', 'B', ANIMALS, True),
    ('Answer: Choice B', 'B', ANIMALS, True),
    ('Answer: a goat', 'B', ANIMALS, True),
    ('Answer: the goat', 'B', ANIMALS, True),
    ('Answer: goat', 'B', ANIMALS, True),
    ('Answer: A goat', 'B', ANIMALS, True),
    ('Answer: A', 'B', ANIMALS, False),
    ('Answer: a', 'B', ANIMALS, False),
    ('Answer: B) a goat', 'B', ANIMALS, True),
    ('Answer: [B]', 'B', ANIMALS, True),
    ('Answer: <B>', 'B', ANIMALS, True),
    ('Answer: B!', 'B', ANIMALS, True),
    ('Answer: I think B', 'B', ANIMALS, True),
    ('The answer is B, and not C.', 'B', ANIMALS, True),
    ('Answer: B: a goat', 'B', ANIMALS, True),
    ('Answer: B — a goat', 'B', ANIMALS, True),
    ('Answer: a goat (B)', 'B', ANIMALS, True),
    ('Answer: none', 'B', ANIMALS, False),
    ('Answer: Neither B nor C', 'B', ANIMALS, False),
    ('Answer: B and not A', 'B', ANIMALS, True),
    ('Answer: A goat and a cow', 'B', ANIMALS, False),
    ('Answer: E', 'B', ANIMALS, False),
    ('The answer is **B: a goat**, since a goat gives milk.', 'B', ANIMALS, True),
    ('Answer: 15', 'B', ['A. 12', 'B. 15', 'C. 18'], True),
    ('Answer: 15', 'B', ['(A) 12', '(B) 15', '(C) 18'], True),
    ('Answer: -5', 'B', ['A) 5', 'B) -5'], True),
    ('Answer: 5', 'B', ['A) 5', 'B) -5'], False),
    ('Answer: 0.5', 'A', ['1/2', '1/3'], True),
    ('Answer: 8', 'A', ['8 am', '8 pm'], False),
    ('Answer: 8 pm', 'A', ['8 am', '8 pm'], False),
    ('Answer: at least 5', 'A', ['at least 5', 'at most 5'], True),
    ('Answer: 3 million', 'A', ['3 million', '3 billion'], True),
    ('Answer: x = 3', 'A', ['3', '4'], True),
    ('Answer: 2x+1', 'A', ['1+2x', '2x-1'], True),
    ('Answer: B) 12', 'B', ['12', '15'], False),
    ('Answer: (1, 2)', 'A', ['(1,2)', '(2,1)'], True),
    ('Answer: 5 km', 'A', ['5 km', '5 m'], True),
    (r"\boxed 12", "1", None, False),  # TeX would take the 1 alone; nobody means that
    (r"\boxed 12", "12", None, True),
]
# fmt: on


@pytest.mark.parametrize(("completion", "truth", "choices", "right"), FOUND)
def test_the_final_answer_is_found(
    completion: str, truth: str, choices: list[str] | None, right: bool
) -> None:
    answer = extract_natural(completion, "\nTherefore, the answer is: ")
    assert (answer is not None and answers_equal(answer, truth, choices)) is right


def test_votes_group_what_is_equal() -> None:
    assert same_answer("No", "no.")
    assert same_answer("x = 1 or x = 2", "x = 2 or x = 1")
    assert same_answer(7.0, 7.005)
    assert not same_answer("No", "Yes")
    assert not same_answer("7", 7.0)
    assert not same_answer(2**60, 2**60 + 1)


def test_a_judgement_gives_its_reason() -> None:
    assert compare("7", "8").reason == "another number"
    assert compare("5 cents", "$5").reason == "another unit or unknown"
    assert compare("5 or 6", "5").reason == "not one number"
    assert compare("4, 2, 1", "1, 2, 4").reason.startswith("equal as lists")


HOSTILE = [
    "= " * 100, "(a)" * 60, "((" * 50 + "1" + "))" * 50, "[1," * 60, r"\pm 1, " * 25, "1 2 " * 50, "½" * 200,  # noqa: E501
    "1\u0305" * 90, "as " * 66, "million " * 20, "1'000" * 30, "#" * 10**6, "####\n" * 10**5,
    r"\boxed{" * 10**5, "answer is " * 10**5, "<answer>" * 10**5, r"\frac{x^{20}}{y^{20}}" * 5,
    "(x+y+z+w)^{20}", r"\sqrt{" * 20 + "2" + "}" * 20, "\ud800" * 100, "\x00" * 100, "1_{2" * 40,
]  # fmt: skip
TRUTHS = [
    "5",
    "x = 2 or x = -3",
    "y = 2x + 1",
    "(1, 2)",
    "1, 2, 4",
    "x > 3",
    "10 AM",
    "2:3",
    "10!",
    "1011_2",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_hostile_texts_neither_raise_nor_take_long_as_answer_or_truth(text: str) -> None:
    start = time.process_time()
    for truth in TRUTHS:
        assert not answers_equal(text, truth)
        assert not answers_equal(truth, text)
    extract_choice(text, ["5", "6 or 7"])
    extract_choice("5", [text, "6"])
    extract_natural(text, "T: ")
    assert time.process_time() - start < 5
