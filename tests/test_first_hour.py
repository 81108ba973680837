"""The first hour of somebody with an own CSV, an instruct model and an own reward, from the outside.

One story, told by commands alone: a file that has to be divided, whose columns have other names and
whose answers stand in the boxes of worked solutions; a column name with a slip; wandb without network;
Ctrl-C; and the same command once more. Nothing is lost, and nothing that is refused blocks what follows.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from reftune import cli
from reftune.config import Model
from reftune.config.files import load_config
from reftune.model.scratch import new_model
from wandb_file import read_records

ASK, HOW = "What is the price of item {}?", r"It costs {0} euro. So $\boxed{{{0}}}$."
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_key_value_heads": 1}
TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
REWARD = """
def reward(question, completion, answer, tokens, truncated):
    print("judging", question)
    return {"right": float(f"{{{answer}}}" in completion), "short": 0.1 / (1 + tokens)}
"""
COLUMNS = ["--column", "question=ask", "--column", "chain=how"]
# What a small model needs to be quick; nobody would say so much in the first hour.
QUICK = [
    part
    for setting in (
        "sft.epochs=1", "sft.warmup_epochs=1", "ppo.steps=3", "ppo.questions_per_step=4",
        "ppo.samples_per_question=2", "ppo.validate_every_steps=3", "prompt.max_new_tokens=12",
        "prompt.max_prompt_tokens=120", "evaluation.base=false", "compute.threads=1",
        'compute.trackers=["wandb"]',
    )
    for part in ("--set", setting)
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: object
    out: str
    err: str


def reftune(*arguments: str) -> Ended:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr("sys.argv", ["reftune", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return Ended(end.value.code, out.getvalue(), err.getvalue())


def write_model(folder: Path) -> None:
    settings = Model(scratch="tiny", scratch_overrides={**SIZES, "num_attention_heads": 1})
    texts = [ASK.format(n) + HOW.format(n) + "user assistant" for n in range(60)]
    model, tokenizer = new_model(settings, texts, 0)
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended | str]]:
    """Live through the hour; yield what each command said, in the folder where it was lived through."""
    folder = tmp_path_factory.mktemp("hour")
    table = "\n".join(f'{n},"{ASK.format(n)}","{HOW.format(n)}"' for n in range(60))
    (folder / "tasks.csv").write_text(f"no,ask,how\n{table}\n", encoding="utf-8")
    (folder / "own.py").write_text(REWARD, encoding="utf-8")
    write_model(folder / "instruct")
    told: dict[str, Ended | str] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CACHE_DIR": folder / "cache",
            "WANDB_DATA_DIR": folder / "staging", "WANDB_CONFIG_DIR": folder / "settings",
            "PYTHONPATH": Path(cli.__file__).parents[1],
        }.items():  # fmt: skip
            patch.setenv(name, str(value))
        patch.chdir(folder)
        told["checked"] = reftune("data", "check", "tasks.csv", *COLUMNS)
        told["divided"] = reftune("data", "split", "tasks.csv", *COLUMNS)
        given = ["my.toml", "--model", "instruct", "--reward", "own.py:reward"]
        given += ["--train", "tasks_train.jsonl", "--test", "tasks_test.jsonl"]
        told["slip"] = reftune("init", *given, "--column", "question=aks", *COLUMNS[2:])
        told["written"] = reftune("init", *given, *COLUMNS)
        wrong = ["--set", "data.columns.chain=hwo", "--set", "data.columns.answer=hwo"]
        told["second slip"] = reftune("run", "my.toml", *QUICK, *wrong)
        process = tiny_run.start(["run", "my.toml", *QUICK], moment="ppo:update rows:2:INT")
        told["interrupted"] = tiny_run.finish(process, expected=130)
        told["run"] = reftune("run", "my.toml", *QUICK)
        asked = ["evaluate", "--model", "runs/my/ppo/model", "--data", "tasks.csv", *COLUMNS]
        told["evaluated"] = reftune(*asked, "--max", "5", "--reward", "own.py:reward", "--json")
        told["sampled"] = reftune(
            "sample", "--model", "runs/my/ppo/model", "--question", ASK.format(3), "--json"
        )
        yield told


def said(story: dict[str, Ended | str], name: str) -> Ended:
    ended = story[name]
    assert isinstance(ended, Ended)
    return ended


pytestmark = pytest.mark.skipif(not find_spec("wandb"), reason="needs wandb")


def test_the_file_is_read_and_divided(story: dict[str, Ended | str]) -> None:
    checked = said(story, "checked")
    assert checked.code == 0
    assert "60 of 60 rows can be read" in checked.out
    assert "60 (natural), 60 give their answers" in checked.out
    assert "answers    60 of 60 answers are taken from worked solutions (the first, " in checked.out
    assert said(story, "divided").out.splitlines() == [
        "train    48 rows in tasks_train.jsonl",
        "test     12 rows in tasks_test.jsonl",
    ]
    assert said(story, "divided").err == (
        "reftune: next: reftune init tasks.toml --model DIR_OR_NAME --train tasks_train.jsonl"
        " --test tasks_test.jsonl --column question=ask --column chain=how\n"
    )


def test_a_slip_is_named_and_leaves_nothing_in_the_way(story: dict[str, Ended | str]) -> None:
    slip, second = said(story, "slip"), said(story, "second slip")
    assert (slip.code, second.code) == (2, 2)
    error = (
        "reftune: error: tasks_train.jsonl: no {!r} among 'no', 'ask', 'how'; correct data.columns.{}"
    )
    assert slip.err.splitlines() == [error.format("aks", "question")]
    assert second.err.splitlines()[-1] == error.format("hwo", "answer")
    assert said(story, "written").code == said(story, "run").code == 0
    config = load_config("my.toml")
    assert config.data.validation_size == 5
    assert config.sft.epochs > 0


def test_ctrl_c_loses_nothing_and_the_same_command_ends_the_run(story: dict[str, Ended | str]) -> None:
    assert (
        "reftune: interrupted; the same command goes on with ppo behind step 1, saved in"
        " runs/my/ppo/checkpoints/step-00000001\n"
    ) in str(story["interrupted"])
    assert "ppo: goes on behind step 1 of 3" in said(story, "run").err
    rows = [json.loads(x) for x in Path("runs/my/ppo/metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert Path("runs/my/report.html").is_file()
    assert "ReFT" in said(story, "run").out


def test_the_own_reward_was_what_counted(story: dict[str, Ended | str]) -> None:
    rows = [json.loads(x) for x in Path("runs/my/ppo/metrics.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward/right"] + row["reward/short"])
        assert 0 < row["reward/short"] <= 0.05


def test_wandb_has_kept_the_steps_of_both_starts(story: dict[str, Ended | str]) -> None:
    steps: dict[int, dict[str, Any]] = {}
    for path in sorted(Path("runs/my/wandb").glob("offline-run-*/run-*.wandb")):
        for record in read_records(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {x.key or "/".join(x.nested_key): json.loads(x.value_json) for x in items}
                if "ppo/reward" in row:
                    steps[row["ppo/step"]] = row
    assert sorted(steps) == [1, 2, 3]
    assert all("ppo/reward/right" in row for row in steps.values())


def test_the_instruct_model_is_asked_by_its_template_before_and_after(
    story: dict[str, Ended | str],
) -> None:
    assert 'is asked by its chat template, and answers in the style "boxed"' in said(story, "run").err
    found = json.loads(said(story, "evaluated").out)
    assert found["questions"] == 5
    assert 0 <= found["greedy"]["accuracy"] <= 1
    assert found["greedy"]["correct"] <= 5
    answer = json.loads(said(story, "sampled").out)
    assert answer["question"] == ASK.format(3)
    assert set(answer) == {"question", "completion", "status", "answer", "tokens"}
