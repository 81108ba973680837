"""The nouns that all rooms share: a problem, what running a program gave, the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict, get_args, runtime_checkable

Cot = Literal["natural", "program"]

# How a response gives its answer.
AnswerStyle = Literal["trigger", "boxed", "hashes", "answer_is", "function", "fenced"]
ANSWER_STYLES: dict[Cot, tuple[AnswerStyle, ...]] = {
    "natural": ("trigger", "boxed", "hashes", "answer_is"),
    "program": ("function", "fenced"),
}

Row = dict[str, Any]  # an object of a JSON or JSONL file

Status = Literal[
    "ok",  # a number came out
    "ok_text",  # a text came out (multiple choice, or a reward that accepts text)
    "syntax_error",
    "no_solution",  # the program defines no callable solution()
    "no_result",  # nothing could be extracted, or solution() returned None
    "not_a_number",
    "non_finite",
    "exception",
    "timeout",
    "memory",
    "blocked",
    "crash",
    "exited",
    "bad_result",
    "too_long",
    "unsupported",
    "sandbox_error",  # our own fault: never charged to the policy
    "reward_error",  # the user's own reward failed on it
    "reward_timeout",  # the user's own reward did not return in time
    "truncated",  # the token limit came before the end of the answer
]
STATUSES: tuple[Status, ...] = get_args(Status)
ANSWERED: tuple[Status, ...] = ("ok", "ok_text")  # an answer was found, right or wrong


def is_judged(status: Status) -> bool:
    """Tell whether a status says something of the completion, and not of whatever was to judge it."""
    return status not in ("sandbox_error", "reward_error", "reward_timeout")


Answer = float | str


class UserError(Exception):
    """Report bad input in one sentence that names the place and the fix (exit code 2, no traceback)."""


class ToldElsewhere(UserError):
    """End this process by an error that another one of the same run has told already."""


def misfit(style: AnswerStyle, cot: Cot) -> str | None:
    """Return what is wrong, and the fix, where chains of a kind give no answers in this style."""
    if style in ANSWER_STYLES[cot]:
        return None
    fit = " or ".join(f'"{known}"' for known in ANSWER_STYLES[cot])
    return f'"{style}" is no answer style of {cot} chains; choose {fit}, or the other kind of chain'


def shortened(text: str, most: int = 200) -> str:
    """Return a text for a sentence: of a long one its beginning and its end."""
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]} [...] {text[-most // 3 :]}"


def shown(value: object) -> str:
    """Return a value as Python writes it, for a sentence, whatever the value is."""
    try:
        return shortened(repr(value))
    except Exception:  # of thousands of digits, nested without end, or with a __repr__ that fails
        return f"a {type(value).__name__} that cannot be written"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its final answer and, for training, one annotated chain of thought.

    `chain` holds the reasoning alone: for programs the whole `def solution(): ...` text, for natural
    language the sentences before the answer trigger. `choices` are the option texts of a multiple
    choice question, whose `answer` is then the letter of the right one. `columns` are others of the data
    set, for the user's own reward. `source` is where it comes from, of several.
    """

    id: str
    question: str
    answer: str
    chain: str | None = None
    choices: tuple[str, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    source: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Execution:
    """What running one program gave: a named status, and the value when there is one."""

    status: Status
    value: Answer | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one completion: status, extracted answer, whether it is right, reward.

    `status` is "ok" for a number and "ok_text" for a letter or text; anything else says why there is no
    `answer`, such as "no_result" or "timeout". "sandbox_error" is our own fault, not the completion's;
    "reward_error" and "reward_timeout" are those of the user's own reward. `reason` says in one phrase
    why it is right or wrong, `parts` what such a reward is made of; both count for no comparison.
    """

    status: Status
    answer: Answer | None
    correct: bool
    reward: float
    reason: str = field(default="", compare=False)
    parts: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def judged(self) -> bool:
        """Tell whether this says something of the completion; else it must be counted nowhere."""
        return is_judged(self.status)


@runtime_checkable
class RewardFunction(Protocol):
    """A user's own reward in place of the built-in check: of one completion, or of many at once.

    `reward(question, completion, answer)` gets the question as it was asked, the completion (the
    reasoning with its answer, or the whole program) and the right answer as the data have it; by name
    also `tokens`, `truncated`, `stated_answer` (what the built-in reading finds) and columns of the data
    set. It returns what the completion is worth, a
    finite number or a bool, or a dictionary of named parts, which are added up; 1 or more counts as
    correct, unless the part "correct" says otherwise. With a parameter `completions` it gets lists
    (`questions`, `completions`, `answers`, `token_counts`, `truncated`, columns) and returns a list.
    It may be `async`.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what a completion, or each of several, is worth."""
        ...


OneReward = RewardFunction | str  # a function, or its place as `path.py:function` or `module:function`
GivenReward = OneReward | tuple[OneReward, float] | list[OneReward | tuple[OneReward, float]]


class GradedRow(TypedDict):
    """A graded sample as a line of a JSONL file; `value` is the answer that was extracted."""

    id: str
    question: str
    answer: str
    completion: str
    status: Status
    value: Answer | None
    correct: bool
    reward: float
    source: NotRequired[str]


class SampledAnswer(TypedDict):
    """One of a question's samples; `rerank` is how probably a reranker finds it right."""

    completion: str
    status: Status
    value: Answer | None
    correct: bool
    rerank: NotRequired[float | None]


class AnsweredQuestion(GradedRow):
    """A test question with its prompt, its greedy answer and, where they were drawn, its samples."""

    prompt: NotRequired[str]
    samples: NotRequired[list[SampledAnswer]]


class CountedRow(GradedRow):
    """A completion of a question and how often it was drawn."""

    count: int


class LoggedRow(GradedRow):
    """A sample that an online stage logged, and the step in which it was drawn."""

    step: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run found.

    Attributes:
        directory: of the run, with all that it wrote.
        report: the page that shows it.
        ran: the stages that were run now; those that were finished before are left out.
        questions: how many test questions each model answered.
        models: accuracies by model ("base", "sft", "reft", ...) and by aggregation, such as
            `models["reft"]["greedy"]["accuracy"]`, each with its 95% interval.
        comparisons: every two models `a` and `b` on the same questions: difference, interval, p-value.
    """

    directory: Path
    report: Path
    ran: list[str]
    questions: int
    models: dict[str, dict[str, Any]]
    comparisons: list[dict[str, Any]]

    def metrics(self, stage: str) -> list[Row]:
        """Return the metrics of a stage ("sft", "ppo", "evaluation", ...), a row per step.

        Raises UserError where the run has no such stage, or its file is damaged.
        """
        from reftune.files import read_jsonl

        path = self.directory / stage / "metrics.jsonl"
        if not path.is_file():
            logs = self.directory.rglob(path.name)
            stages = sorted(str(log.parent.relative_to(self.directory)) for log in logs)
            raise UserError(f"{self.directory}: has no stage {stage}; choose {' or '.join(stages)}")
        return read_jsonl(path)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote behind a prompt.

    Attributes:
        text: without what ended it.
        tokens: ids as they were sampled, with the end token, or with what spells the stop string.
        logprob: of all these tokens, in the model's full distribution at the temperature of the sample
            (at 1 where the most likely tokens were taken), whatever top-p left out.
        finished: ended by an end token or a stop string; otherwise the limit cut it off.
    """

    text: str
    tokens: list[int]
    logprob: float
    finished: bool


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What a model made of questions.

    Attributes:
        summary: accuracies by aggregation ("greedy"; "vote" and "pass" with samples), with intervals.
        rows: one per question: what was answered, with its verdict, and the samples if there are any.
    """

    summary: dict[str, Any]
    rows: list[AnsweredQuestion]

    @property
    def accuracy(self) -> float:
        """Return the share of questions whose greedy answer is right."""
        return float(self.summary["greedy"]["accuracy"])
