"""Judge completions: find their final answer, compare it with the truth, give the reward."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from reftune.config import Reward
from reftune.grading.answers import check_answer, judge_letter
from reftune.grading.choices import extract_choice
from reftune.grading.equality import Judgement, compare, judge_numbers, truth_number
from reftune.grading.extraction import extract_natural
from reftune.grading.fenced import extract_program, has_program
from reftune.grading.quantities import parse_number, plain_number
from reftune.grading.reward_calls import RewardSample
from reftune.grading.rewards import OwnReward
from reftune.grading.sandbox import Sandbox
from reftune.problem import (
    Answer,
    AnswerStyle,
    Cot,
    Execution,
    Problem,
    Status,
    UserError,
    Verdict,
)

MAX_REASON_CHARS = 200


@runtime_checkable
class Judge(Protocol):
    """What gives verdicts."""

    def __call__(
        self,
        problems: Sequence[Problem],
        completions: Sequence[str],
        finished: Sequence[bool],
        tokens: Sequence[int] | None = None,
        /,
    ) -> list[Verdict]:
        """Return one verdict per completion.

        Args:
            problems: what each completion answers.
            completions: texts; of programs the whole `def solution(): ...`, or the text with a fenced
                block that holds it, by the style of the answers.
            finished: whether each ended before the token limit.
            tokens: the length of each, where somebody has counted; for the user's own reward.
        """
        ...


def make_judge(
    cot: Cot,
    *,
    trigger: str,
    partial_reward: float,
    sandbox: Sandbox | None = None,
    reward: OwnReward | None = None,
    answer_style: AnswerStyle | None = None,
) -> Judge:
    """Return the judge of one kind of chain.

    The reward is 1 for the right answer, `partial_reward` for a wrong number where a number is asked
    (never for multiple choice), else 0 (Luong et al. 2024, section 3.2). Unfinished completions are not
    looked at. A verdict keeps the answer only if it has the right type, so every answer may vote.
    The judge raises UserError for a problem whose ground truth cannot be graded.

    Args:
        trigger: the words before the answer of a natural-language chain.
        sandbox: runs programs; multiple choice needs one made with `text=True`.
        reward: the user's own. Its value replaces the reward, and it says what counts as correct; status
            and answer stay those of the built-in extraction, except where it fails. It is asked about
            completions that were cut off if it asks whether they were.
        answer_style: how the answers are written; default: "trigger" and "function", the paper's.
    """
    read = _make_reader(cot, trigger, sandbox, answer_style)

    def judge(
        problems: Sequence[Problem],
        completions: Sequence[str],
        finished: Sequence[bool],
        tokens: Sequence[int] | None = None,
        /,
    ) -> list[Verdict]:
        for problem in dict.fromkeys(problems):  # each question comes once per sample
            judged_here = reward is None or not reward.judges(problem)
            if judged_here and (complaint := check_answer(problem, cot)):
                raise UserError(complaint)
        results = read(completions, finished)
        pairs = zip(problems, results, strict=True)
        verdicts = [_verdict(problem, result, cot, partial_reward) for problem, result in pairs]
        if reward is None:
            return verdicts
        stated = [None if result.value is None else _spelled(result.value) for result in results]
        return _rescored(reward, problems, completions, verdicts, stated, tokens)

    return judge


def _rescored(
    reward: OwnReward,
    problems: Sequence[Problem],
    completions: Sequence[str],
    verdicts: list[Verdict],
    stated: Sequence[str | None],
    tokens: Sequence[int] | None,
) -> list[Verdict]:
    """Put the user's rewards into verdicts, except those that say nothing of the completion."""
    left_out = ("sandbox_error",) if reward.wants_truncated else ("sandbox_error", "truncated")
    asked = [
        i for i, (problem, verdict) in enumerate(zip(problems, verdicts, strict=True))
        if verdict.status not in left_out and reward.judges(problem)
    ]  # fmt: skip
    samples: list[RewardSample] = [
        {
            "question": problems[i].question, "completion": completions[i], "answer": problems[i].answer,
            "tokens": tokens[i] if tokens else None, "truncated": verdicts[i].status == "truncated",
            "stated_answer": stated[i], "columns": dict(problems[i].columns),
        }
        for i in asked
    ]  # fmt: skip
    for i, scored in zip(asked, reward(samples, [problems[i].id for i in asked]), strict=True):
        if scored.failure:
            verdicts[i] = Verdict(scored.failure, None, False, 0.0, scored.reason)
        else:
            verdicts[i] = replace(
                verdicts[i], correct=scored.correct, reward=scored.value, parts=scored.parts
            )
    return verdicts


def _spelled(value: Answer) -> str:
    """Return an answer as text, a number that a program returned without needless digits."""
    return value if isinstance(value, str) else f"{value:.15g}"


def make_extractor(
    cot: Cot,
    *,
    trigger: str,
    sandbox: Sandbox | None = None,
    answer_style: AnswerStyle | None = None,
) -> Judge:
    """Return a judge for questions whose answer nobody knows: its verdicts have what was answered.

    Any type will do: a number ("ok"), a letter or text ("ok_text"). Nothing is correct, rewards are 0;
    for the arguments see `make_judge`.
    """
    read = _make_reader(cot, trigger, sandbox, answer_style)

    def extract(
        problems: Sequence[Problem],
        completions: Sequence[str],
        finished: Sequence[bool],
        tokens: Sequence[int] | None = None,
        /,
    ) -> list[Verdict]:
        verdicts = []
        for result in read(completions, finished):
            number = _stated_number(result.value, cot)
            status, answer = (result.status, result.value) if number is None else ("ok", number)
            verdicts.append(Verdict(status, answer, False, 0.0))
        return verdicts

    return extract


def make_sandbox(limits: Reward, workers: int | None = None, *, text: bool) -> Sandbox:
    """Return a sandbox with these limits; `text` accepts texts too, as in multiple choice.

    It costs nothing before it runs a program. Raises UserError where `reward.full_python` cannot hold.
    """
    seconds, memory_mb = limits.sandbox_seconds, limits.sandbox_memory_mb
    return Sandbox(workers, seconds, memory_mb, text=text, full_python=limits.full_python)


def _make_reader(
    cot: Cot, trigger: str, sandbox: Sandbox | None, style: AnswerStyle | None
) -> Callable[[Sequence[str], Sequence[bool]], list[Execution]]:
    """Return the function from completions, and whether each was finished, to what they answer."""
    if cot == "program" and sandbox is None:
        raise ValueError("programs need a sandbox to run in")

    def read(completions: Sequence[str], finished: Sequence[bool]) -> list[Execution]:
        texts = [text for text, whole in zip(completions, finished, strict=True) if whole]
        if sandbox is not None and cot == "program":
            if style == "fenced":  # without a program there is nothing to run
                texts = [extract_program(text) if has_program(text) else "" for text in texts]
            found = iter(sandbox.run(texts))
        else:
            found = iter([_read_natural(text, trigger, style) for text in texts])
        return [next(found) if whole else Execution("truncated") for whole in finished]

    return read


def _read_natural(text: str, trigger: str, style: AnswerStyle | None) -> Execution:
    answer = extract_natural(text, trigger, style)
    return Execution("no_result") if answer is None else Execution("ok_text", answer)


def _verdict(problem: Problem, result: Execution, cot: Cot, partial_reward: float) -> Verdict:
    if cot == "natural" and (verdict := _plain_verdict(problem, result.value, partial_reward)):
        return verdict
    if result.value is None:
        message = result.message[:MAX_REASON_CHARS].strip().partition("\n")[0]
        return Verdict(
            result.status, None, False, 0.0, message or _WITHOUT_ANSWER.get(result.status, "")
        )
    status, answer = _of_asked_type(problem, result.value, cot)
    if answer is None:
        return Verdict(status, None, False, 0.0, _WITHOUT_ANSWER[status])
    equal, reason = _judgement(problem, result.value, answer)
    if cot == "program" and not equal and problem.choices is None:
        reason = f"returned {result.value!r:.50}, expected {problem.answer:.50}"
    return Verdict(status, answer, equal, 1.0 if equal else partial_reward * (status == "ok"), reason)


def _plain_verdict(problem: Problem, value: Answer | None, partial_reward: float) -> Verdict | None:
    """Return the verdict on one plain number where another is asked, as in most completions."""
    if problem.choices is not None or not isinstance(value, str):
        return None
    number, true_number = plain_number(value), plain_number(problem.answer)
    if number is None or true_number is None:
        return None
    equal, reason = judge_numbers(number, true_number)
    return Verdict("ok", number, equal, 1.0 if equal else partial_reward, reason)


_WITHOUT_ANSWER: dict[Status, str] = {
    "no_result": "no answer found",
    "not_a_number": "not one number",
    "truncated": "cut off at the token limit",
}


def _judgement(problem: Problem, value: Answer, answer: Answer) -> Judgement:
    """Compare what was answered, of whose letter or number the verdict has `answer`."""
    if problem.choices is None:
        return compare(value, problem.answer)
    return judge_letter(answer, problem.answer, problem.choices)


def _of_asked_type(problem: Problem, value: Answer, cot: Cot) -> tuple[Status, Answer | None]:
    """Return the value as a letter ("ok_text"), number ("ok") or text, whichever the truth is."""
    if problem.choices is not None:
        letter = extract_choice(value, problem.choices)
        return ("no_result", None) if letter is None else ("ok_text", letter)
    if isinstance(value, str) and truth_number(problem.answer) is None:
        return "ok_text", value
    number = _stated_number(value, cot)
    return ("not_a_number", None) if number is None else ("ok", number)


def _stated_number(value: Answer | None, cot: Cot) -> float | None:
    """Return the number that was answered, None if it was anything else."""
    if not isinstance(value, str):
        return value
    # A program has to return a number; only a chain in natural language spells it.
    return parse_number(value) if cot == "natural" else None
