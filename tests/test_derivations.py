"""Programs from solutions and equations: linked, named, ended where the answer is."""

from __future__ import annotations

from fractions import Fraction

import pytest

from reftune.data.derive.derivations import (
    chain_from_equation,
    program_from_equation,
    program_from_solution,
    stated_numbers,
)
from reftune.data.derive.programs import UnderivableError

QUESTION = "Natalia sold clips to 48 friends in April, and half as many in May. How many altogether?"


def body(program: str) -> list[str]:
    """Return the lines between the head and the result."""
    lines = program.split("\n    ")
    assert lines[0] == "def solution():"
    assert lines[-2:] == [f"result = {lines[-3].partition(' =')[0]}", "return result"]
    return lines[1:-2]


def test_a_result_that_is_used_later_becomes_a_variable() -> None:
    solution = (
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May."
    )
    assert body(program_from_solution(QUESTION, solution, 72)) == [
        "clips_in_may = 48 / 2",
        "clips_altogether_in_april = 48 + clips_in_may",
    ]


def test_a_number_of_the_question_is_linked_once_only() -> None:
    question = "Ann has 5 boxes of 2 pens and 5 cups. How many pens for each of 5 cups and boxes?"
    solution = "She has 10/2=5 sets of pens.\nThat is 5*3=15 red pens.\nAnd 15+5=20 blue pens."
    assert body(program_from_solution(question, solution, 20)) == [
        "sets_of_pens = 10 / 2",
        "red_pens = sets_of_pens * 3",
        "blue_pens = red_pens + 5",
    ]


def test_a_number_that_only_the_solution_knows_is_linked_every_time() -> None:
    solution = "4*5=20 red pens.\n20*2=40 blue pens.\n20+40=60 pens of all"
    assert body(program_from_solution("?", solution, 60))[-1].endswith("= red_pens + blue_pens")


def test_equal_results_are_told_apart() -> None:
    solution = "2+2=4 red pens. 1+3=4 blue pens. 4+4=8 pens in all"
    assert body(program_from_solution("?", solution, 8))[-1] in (
        "pens = red_pens + blue_pens",
        "pens = blue_pens + red_pens",
    )


def test_the_hundred_of_a_percentage_is_no_result() -> None:
    solution = "50*2=100 pens.\n20/100*100=20 red pens"
    assert body(program_from_solution("?", solution, 20)) == [
        "pens = 50 * 2",
        "red_pens = 20 / 100 * pens",
    ]


def test_the_program_ends_with_the_last_equation_that_gives_the_answer() -> None:
    solution = "1*2=2 cells, 2*2=4 cells, 4*2=8 cells, 8*2=16 cells"
    assert len(body(program_from_solution("?", solution, 8))) == 3


@pytest.mark.parametrize(
    "solution", ["So 72.", "It is <<72=72>>72", "70 + 2 = 71", "70 + 3 = 73", "x = 72", ""]
)
def test_an_answer_that_nothing_computes_gives_no_program(solution: str) -> None:
    with pytest.raises(UnderivableError, match="no equation of the solution gives the answer"):
        program_from_solution(QUESTION, solution, 72)


def test_an_unknown_is_solved_for() -> None:
    solution = "4x + x + 7 = 52\n5x = 45\nx = <<9=9>>9\nJames has 7+4(9) = 43 Oreos"
    assert body(program_from_solution("?", solution, 43)) == [
        "x = (52 - 7) / 5",
        "james_oreos = 7 + 4 * x",
    ]


def test_an_equation_becomes_one_line_per_sign() -> None:
    equation = "( ( 23.0 + 4.0 ) - ( 2.5 * 2.0 ) )"
    assert body(program_from_equation(equation)) == [
        "total = 23 + 4",
        "product = 2.5 * 2",
        "difference = total - product",
    ]
    assert chain_from_equation(equation, 22) == "23 + 4 = 27\n2.5 * 2 = 5\n27 - 5 = 22"
    assert chain_from_equation("( 10.0 / 3.0 )", 3.33) == "10 / 3 = 3.33"


@pytest.mark.parametrize("equation", ["", "8.0", "( 8.0 - x )", "( 8.0 ** 2.0 )", "print(1)", "8 //"])
def test_other_equations_are_refused(equation: str) -> None:
    with pytest.raises(UnderivableError, match="cannot be read"):
        program_from_equation(equation)
    with pytest.raises(UnderivableError, match="cannot be read"):
        chain_from_equation(equation, 8)


def test_an_equation_that_gives_another_answer_is_no_chain() -> None:
    with pytest.raises(UnderivableError, match="another answer"):
        chain_from_equation("( 8.0 - 3.0 )", 6)


def test_numbers_of_a_question_are_those_it_states_or_implies() -> None:
    question = "In two weeks Ann saves 15% of $1,200.50, twice as much as .5 dozen cups."
    stated = {Fraction(n) for n in ("2", "7", "52", "15", "0.15", "1200.5", "0.5", "12")}
    assert stated <= stated_numbers(question)
    assert not {Fraction(n) for n in (3, 4, 5, 50, 60, 200)} & stated_numbers(question)
