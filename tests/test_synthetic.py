"""The generated stories, judged by readers that share no code with the generator."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from hashlib import sha256

import pytest

from reftune.config import Synthetic
from reftune.data.synthetic.generator import generate
from reftune.grading.answers import answers_equal, check_answer
from reftune.problem import Cot, Problem, UserError
from story_reader import read_story

DEFAULT = Synthetic()
HARD = Synthetic(min_events=4, max_events=8, people=5, max_number=50, distractors=1.0)


def digest(problems: list[Problem]) -> str:
    text = "\n".join(f"{p.question}\n{p.chain}\n{p.answer}" for p in problems)
    return sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("settings", [DEFAULT, HARD])
def test_answer_is_what_a_reader_of_the_question_finds(settings: Synthetic) -> None:
    for problem in generate(settings, 400, 3, "program"):
        history, answer = read_story(problem.question)
        assert int(problem.answer) == answer, problem
        # No half apples, and nobody owes any.
        assert all(n >= 0 and n.denominator == 1 for amounts in history for n in amounts.values())


@pytest.mark.parametrize("settings", [DEFAULT, HARD])
def test_program_runs_to_the_answer(settings: Synthetic) -> None:
    for problem in generate(settings, 400, 4, "program"):
        scope: dict[str, object] = {}
        exec(problem.chain or "", scope)
        assert scope["solution"]() == int(problem.answer), problem  # type: ignore[operator]


@pytest.mark.parametrize("settings", [DEFAULT, HARD])
def test_every_equation_of_the_sentences_is_true_and_the_last_number_answers(
    settings: Synthetic,
) -> None:
    checked = 0
    for problem in generate(settings, 400, 5, "natural"):
        chain = problem.chain or ""
        for left, right in re.findall(r"(\d+(?: [-+*/] \d+)+) = (\d+)", chain):
            assert eval(left) == int(right), problem
            checked += 1
        assert chain.count("=") == len(re.findall(r"\d = \d", chain))  # none escaped the pattern
        assert re.findall(r"\d+", chain)[-1] == problem.answer, problem
        assert "Therefore" not in chain
    assert checked > 1000


def test_programs_come_in_several_styles() -> None:
    problems = generate(DEFAULT, 300, 6, "program")
    chains = [problem.chain or "" for problem in problems]
    styles = {
        "augmented": r"^    \w+ [-+*/]+= ",
        "updated": r"^    (\w+) = \1 ",
        "result": r"^    return result$",
        "direct": r"^    return \w+ [-+] ",
    }
    for name, pattern in styles.items():
        share = sum(bool(re.search(pattern, chain, re.MULTILINE)) for chain in chains) / len(chains)
        assert 0.1 < share < 0.9, (name, share)
    everybody = [
        {name.lower() for name in re.findall(r"[A-Z]\w+", problem.question)} - {"how"}
        <= set(re.findall(r"\w+", problem.chain or ""))
        for problem in problems
    ]
    assert 0.5 < sum(everybody) / len(everybody) < 0.9  # the others work out only who matters
    assert all(chain.startswith("def solution():\n    ") for chain in chains)
    assert not any('"""' in chain for chain in chains)


def test_sentences_come_in_several_styles() -> None:
    chains = [problem.chain or "" for problem in generate(DEFAULT, 300, 6, "natural")]
    for name, pattern in {"sentences": r"^\w+ has \d", "lines": r"^\w+: \d", "bare": r"^\d+ ."}.items():
        share = sum(bool(re.search(pattern, chain)) for chain in chains) / len(chains)
        assert 0.2 < share < 0.5, (name, share)


def test_a_retold_chain_by_hand() -> None:
    small = Synthetic(min_events=1, max_events=3, max_number=6, retold=True)
    problem = generate(small, 2, 1, "natural")[1]
    assert problem.question == (
        "Ann has 5 coins. Cal has 2. Dan has 2 times as many as Cal. Cal loses 2. Ann gets 3 more."
        " Dan gets 2 more. How many more coins does Dan have than Cal?"
    )
    assert problem.chain == (  # of those who matter
        "Cal has 2. Dan has 2 times as many as Cal. Cal has 2. 2 * 2 = 4. Dan has 4."
        " Cal loses 2. Cal has 2. 2 - 2 = 0. Cal has 0."
        " Dan gets 2 more. Dan has 4. 4 + 2 = 6. Dan has 6."
        " Dan has 6. Cal has 0. The answer is 6 - 0 = 6."
    )


def test_a_retold_chain_says_whatever_a_calculation_is_made_of() -> None:
    retold = generate(HARD.model_copy(update={"retold": True}), 100, 6, "natural")
    calculations = 0
    for problem, plain in zip(retold, generate(HARD, 100, 6, "natural"), strict=True):
        assert (problem.question, problem.answer) == (plain.question, plain.answer)
        known, told = Counter[str](), re.split(r"(?<=[.?]) ", problem.question)
        for sentence in re.split(r"(?<=\.) ", problem.chain or ""):
            numbers = re.findall(r"\d+", sentence)
            if "=" in sentence:
                assert not Counter(numbers[:2]) - known, (sentence, problem)
                calculations += 1
            if sentence in told and not re.fullmatch(r"\w+ has \d+( \w+)?\.", sentence):
                known = Counter(["2"] if re.search("doubles|half", sentence) else numbers)
            else:
                known.update(numbers)
    assert calculations > 500


def test_questions_do_not_depend_on_the_kind_of_chain() -> None:
    programs, sentences = (generate(DEFAULT, 50, 7, cot) for cot in ("program", "natural"))
    assert [p.question for p in programs] == [p.question for p in sentences]
    assert all(p.chain != n.chain for p, n in zip(programs, sentences, strict=True))


def test_larger_set_starts_with_the_smaller_one() -> None:
    assert generate(DEFAULT, 80, 8, "program")[:30] == generate(DEFAULT, 30, 8, "program")


def test_questions_are_different_and_train_and_test_hardly_meet() -> None:
    train = [problem.question for problem in generate(DEFAULT, 1700, 1, "program")]
    test = {problem.question for problem in generate(DEFAULT, 1000, 2, "program")}
    assert len(set(train)) == 1700
    assert len(test & set(train)) <= 2


def test_same_problems_on_every_platform() -> None:
    problems = generate(DEFAULT, 100, 42, "program")
    assert problems[0].id == "synthetic-42-0"
    assert problems[99].id == "synthetic-42-99"
    assert digest(problems) == "4224e8bfc303d4c9"
    assert digest(generate(DEFAULT, 100, 42, "natural")) == "c847363563d8c3f3"
    assert digest(generate(HARD, 100, 42, "natural")) == "00524f976ffa684c"


def test_settings_set_the_difficulty() -> None:
    def events(question: str) -> int:
        sentences = question.split(". ")
        return sum(
            " has " not in s or (" as many as " in s and "times" not in s) for s in sentences[:-1]
        )

    quiet = generate(Synthetic(distractors=0.0), 200, 9, "program")
    assert {events(problem.question) for problem in quiet} == {2, 3, 4}
    assert not any("years old" in p.question or "birds" in p.question for p in quiet)
    noisy = generate(Synthetic(distractors=1.0), 50, 9, "program")
    assert all("years old" in p.question or "birds" in p.question for p in noisy)
    two = generate(Synthetic(people=2), 50, 9, "program")
    assert all(len(re.findall(r"\w+ has (?:\d+|\d+ \w+)\. ", p.question)) <= 2 for p in two)
    assert max(int(p.answer) for p in quiet) < 3 * 200


def test_stories_without_events_still_have_chains() -> None:
    for problem in generate(Synthetic(min_events=0, max_events=0), 60, 1, "natural"):
        assert int(problem.answer) == read_story(problem.question)[1]
        assert problem.chain


def options(problem: Problem) -> dict[str, int]:
    """Read the options off the question's last line."""
    pairs = [option.split(" ) ") for option in problem.question.split("\n")[1].split(" , ")]
    return {letter: int(text) for letter, text in pairs}


@pytest.mark.parametrize("settings", [DEFAULT, HARD])
@pytest.mark.parametrize("count", [2, 5])
def test_options_are_different_numbers_and_the_letter_is_that_of_the_answer(
    settings: Synthetic, count: int
) -> None:
    for problem in generate(settings.model_copy(update={"choices": count}), 100, 3, "natural"):
        found = options(problem)
        assert "".join(found) == "abcde"[:count]
        assert problem.choices == tuple(map(str, found.values()))
        assert len(set(found.values())) == count
        assert min(found.values()) >= 0
        assert found[problem.answer] == read_story(problem.question)[1]
        assert check_answer(problem) is None


def test_there_are_enough_options_in_the_shortest_stories_with_the_smallest_numbers() -> None:
    for events in (0, 1):
        least = Synthetic(min_events=events, max_events=events, max_number=4, people=2, choices=5)
        assert all(len(set(p.choices or ())) == 5 for p in generate(least, 80, 1, "natural"))


@pytest.mark.parametrize("cot", ["program", "natural"])
def test_a_problem_with_options_is_the_one_without_and_a_line_more(cot: Cot) -> None:
    plain = generate(HARD, 100, 7, cot)
    for a, b in zip(plain, generate(HARD.model_copy(update={"choices": 4}), 100, 7, cot), strict=True):
        assert (a.id, a.question, a.chain) == (b.id, b.question.split("\n")[0], b.chain)
        assert options(b)[b.answer] == int(a.answer)
        assert a.choices is None


def test_a_program_that_returns_the_number_names_the_option() -> None:
    for problem in generate(Synthetic(choices=5), 100, 2, "program"):
        scope: dict[str, object] = {}
        exec(problem.chain or "", scope)
        assert answers_equal(float(scope["solution"]()), problem.answer, problem.choices)  # type: ignore[operator]


def test_a_story_has_the_same_options_wherever_it_comes_up() -> None:
    tiny = Synthetic(min_events=0, max_events=1, people=2, max_number=5, choices=5)
    train, test = ({p.question for p in generate(tiny, 300, seed, "natural")} for seed in (1, 2))
    stories_in_both = {q.split("\n")[0] for q in train} & {q.split("\n")[0] for q in test}
    assert len(stories_in_both) > 5
    assert len(train & test) == len(stories_in_both)  # or copies in train and test would go unseen


def test_the_options_alone_do_not_tell_which_is_right() -> None:
    problems = generate(Synthetic(choices=5), 800, 5, "natural")
    guesses: dict[str, Callable[[int, list[int]], float]] = {
        "largest": lambda v, _: v,
        "smallest": lambda v, _: -v,
        "most central": lambda v, all_: -sum(abs(v - other) for other in all_),
        "most neighbours": lambda v, all_: sum(abs(v - other) <= 10 for other in all_),
        "most near misses": lambda v, all_: sum(abs(v - other) <= 2 for other in all_),
    }
    for name, score in guesses.items():
        right = 0.0
        for problem in problems:
            numbers = options(problem)
            scores = {letter: score(v, list(numbers.values())) for letter, v in numbers.items()}
            best = [letter for letter in scores if scores[letter] == max(scores.values())]
            right += (problem.answer in best) / len(best)
        assert right / len(problems) < 0.3, name  # chance is 0.2
    letters = Counter(problem.answer for problem in problems)
    assert all(110 < letters[letter] < 210 for letter in "abcde")  # 160 +- 4.4 standard deviations


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Synthetic(people=9), "people"),
        (Synthetic(min_events=5, max_events=2), "min_events is larger than max_events"),
        (Synthetic(choices=1), "data.synthetic.choices: 2 to 5, or 0 for a number as the answer, not 1"),
        (
            Synthetic(min_events=0, max_events=0, people=2, max_number=4, distractors=0),
            "different questions",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: Synthetic, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(settings, 20_000, 1, "program")
