"""The files that a run's stages leave, read back: each has a shape, and what has another is named.

The keys here are those that somebody reads; others may stand beside them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Strict, Tag
from typing_extensions import TypedDict

from reftune.files import RUN_AGAIN, read_object, require_shape
from reftune.methods import methods_by_stage
from reftune.problem import Row, UserError

Number = Annotated[float, Strict()]
Drawable = Annotated[float, Strict(), Field(ge=-1e30, le=1e30)]
Whole = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Interval = Annotated[list[Number], Field(min_length=2, max_length=2)]
Points = dict[Annotated[str, Field(pattern=r"^\d+$")], Number]  # by number of samples


class Logged(TypedDict):
    """A row of a stage's log."""

    step: Number


class Metrics(BaseModel):
    """A row of metrics.jsonl."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number | None] = Field(init=False)
    step: Number
    statuses: dict[str, Whole] = {}


class Sampled(TypedDict):
    """A sample of a test question."""

    completion: NotRequired[str]
    status: str
    value: Number | str | None
    correct: Flag
    rerank: NotRequired[Number | None]


class Judged(TypedDict):
    """What all samples have in every file."""

    question: str
    answer: str
    completion: str
    status: str
    correct: Flag
    value: NotRequired[Number | str | None]


class LoggedSample(Judged):
    """A row of an online stage's samples.jsonl; PPO adds what it made of each token."""

    step: Number
    tokens: NotRequired[list[str]]
    logprobs: NotRequired[list[Number]]
    log_ratios: NotRequired[list[Number]]
    values: NotRequired[list[Number]]
    advantages: NotRequired[list[Number]]


class Counted(TypedDict):
    """A row of warmup_samples/samples.jsonl."""

    id: str
    completion: str
    status: str
    correct: Flag
    count: Whole


class Answered(Judged):
    """A row of evaluation/MODEL.jsonl."""

    id: str
    prompt: NotRequired[str]
    samples: NotRequired[list[Sampled]]


class Timed(TypedDict):
    """A row of the evaluation's log."""

    model: str
    seconds: NotRequired[Number]


class Asked(TypedDict, total=False):
    """The evaluation section of a configuration."""

    rerank: Flag
    base: Flag


class Settings(TypedDict, total=False):
    """A run's config.toml, perhaps of another version."""

    name: str
    methods: list[str]
    data: Row
    model: Row
    evaluation: Asked
    sft: Row
    warmup_samples: Row
    offline_st: Row
    online_st: Row
    ppo: Row
    reranker: Row


class Considered(TypedDict):
    """An epoch of SFT as a start of the other methods, in sft/result.json."""

    epoch: Whole
    validation_accuracy: Drawable
    pass_at_1: Drawable
    pass_at_k: Drawable
    mixed: Drawable


class Start(TypedDict, total=False):
    """The facts of run.json."""

    command: str
    versions: dict[str, str]
    started: str


class Share(TypedDict):
    """A share of the test questions."""

    accuracy: Number
    interval: Interval
    k: NotRequired[Whole]


class WrongChains(TypedDict):
    """How many right answers come from wrong chains."""

    wrong: Whole
    checked: Whole
    unchecked: Whole
    share: Number
    interval: Interval


def _kind(value: Any) -> str:
    return "accuracy" if isinstance(value, dict) and "accuracy" in value else "other"


class Curved(BaseModel):
    """A model's accuracies over the number of samples."""

    passes: Points = Field({}, alias="pass")
    curves: dict[str, Points] = {}


class Summary(Curved):
    """A model's accuracies by aggregation, and what else is known of it."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[
        str,
        Annotated[
            Annotated[Share, Tag("accuracy")] | Annotated[Any, Tag("other")], Discriminator(_kind)
        ],
    ] = Field(init=False)
    greedy: Share
    right_answer_wrong_chain: WrongChains | None = None


class Compared(TypedDict):
    """Two models on the same questions."""

    a: str
    b: str
    aggregation: str
    difference: Number
    interval: Interval
    mcnemar_p: Number


class Evaluated(TypedDict):
    """The result of the evaluation."""

    n: Annotated[int, Strict(), Field(ge=1)]
    models: Annotated[dict[str, Summary], Field(min_length=1)]
    comparisons: list[Compared]


class Outline(TypedDict):
    """What a comparison reads of the evaluation's result."""

    models: dict[str, Curved]


def read_result(run_dir: Path, stage: str) -> Row:
    """Read the `result.json` of a finished stage; raise UserError where it is damaged."""
    path = run_dir / stage / "result.json"
    if stage == "evaluation":
        return _known_models(read_object(path, RUN_AGAIN, Evaluated), path)
    method = methods_by_stage().get(stage)
    needed: Sequence[str] = ("accuracy", "samples")  # of the warm-up samples
    if method is not None:
        needed = (f"best_{method.unit}", "best_validation_accuracy")
    elif stage.startswith("reranker/"):
        needed = ("best_validation_auc",)
    row = read_object(path, RUN_AGAIN)
    for key in (*needed, *(key for key in row if key.startswith(("best_", "warmup_")))):
        require_shape(row.get(key), Drawable, f"{path}: {key}", RUN_AGAIN)
    if "starts" in row:
        require_shape(row["starts"], list[Considered], f"{path}: starts", RUN_AGAIN)
    return row


def _known_models(found: Row, path: Path) -> Row:
    for pair in found["comparisons"]:
        for model in (pair["a"], pair["b"]):
            if model not in found["models"]:
                raise UserError(f"{path}: compares {model}, which is not among its models; {RUN_AGAIN}")
    return found
