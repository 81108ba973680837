"""The generated stories, judged by readers that share no code with the generator."""

from __future__ import annotations

import re
from hashlib import sha256

import pytest

from reftune.config import Synthetic
from reftune.synthetic import generate
from reftune.types import UserError

DEFAULT = Synthetic()
HARD = Synthetic(min_events=4, max_events=8, people=5, max_number=50, distractors=1.0)


def read_story(question: str) -> int:
    """Answer a question from its text alone, sentence by sentence, as a reader would."""
    amounts: dict[str, int] = {}
    *sentences, asked = re.split(r"(?<=[.?]) ", question)
    for sentence in sentences:
        numbers = [int(n) for n in re.findall(r"\d+", sentence)]
        a, *rest = re.findall(r"[A-Z]\w+", sentence)
        b = rest[0] if rest else a
        n = numbers[0] if numbers else 0
        if "years old" in sentence or "birds" in sentence:
            continue
        if "times as many" in sentence:
            amounts[a] = n * amounts[b]
        elif "more than" in sentence:
            amounts[a] = amounts[b] + n
        elif re.fullmatch(r"\w+ has \d+( \w+)?\.", sentence):
            amounts[a] = n
        elif "doubles" in sentence:
            amounts[a] += amounts[a]
        elif "as many as" in sentence:
            amounts[a] += amounts[b]
        elif "half" in sentence:
            half, odd = divmod(amounts[a], 2)
            assert not odd
            amounts[a] = half
        elif "gives" in sentence:
            amounts[a], amounts[b] = amounts[a] - n, amounts[b] + n
        elif "loses" in sentence:
            amounts[a] -= n
        else:
            assert "gets" in sentence or "finds" in sentence, sentence
            amounts[a] += n
        assert all(amount >= 0 for amount in amounts.values()), question
    names = [name for name in re.findall(r"[A-Z]\w+", asked) if name != "How"] or list(amounts)
    if "How many more" in asked:
        return amounts[names[0]] - amounts[names[1]]
    return sum(amounts[name] for name in names)


@pytest.mark.parametrize("settings", [DEFAULT, HARD])
def test_answer_is_what_a_reader_of_the_question_finds(settings: Synthetic) -> None:
    for problem in generate(settings, 400, 3, "program"):
        assert int(problem.answer) == read_story(problem.question), problem


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
    text = "\n".join(f"{p.question}\n{p.chain}\n{p.answer}" for p in problems)
    assert sha256(text.encode()).hexdigest()[:16] == "4224e8bfc303d4c9"


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
        assert int(problem.answer) == read_story(problem.question)
        assert problem.chain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Synthetic(people=9), "people"),
        (Synthetic(min_events=5, max_events=2), "min_events is larger than max_events"),
        (
            Synthetic(min_events=0, max_events=0, people=2, max_number=4, distractors=0),
            "different questions",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: Synthetic, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(settings, 20_000, 1, "program")
