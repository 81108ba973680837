"""Hostile and damaged input at every boundary: one sentence, exit code 2, and never a traceback."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from reftune import cli
from reftune.config.files import flat_settings, load_config
from reftune.evaluation.evaluate import write_result
from reftune.files import read_jsonl, write_jsonl
from reftune.problem import UserError
from reftune.reporting.comparison.compare import compare_runs
from reftune.reporting.run import report
from reftune.reporting.run.report import final_table
from reftune.reporting.run.run_files import read_run
from written_runs import write_run

Ends = Callable[..., str]


@pytest.fixture
def ends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ends:
    """Run a command that has to end with this exit code; return what it said on standard error."""

    def run(*arguments: str, code: int = 2) -> str:
        monkeypatch.setattr("sys.argv", ["reftune", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr().err
        assert end.value.code == code, said
        assert "Traceback" not in said
        assert said.count("reftune: error: ") == (code == 2), said
        return said

    return run


# Configurations and paths.

SHAPE = "model.scratch_overrides"
DEEP = "[" * 10**5
SETTINGS: list[tuple[str, str]] = [
    # places that cannot be written
    ("output_dir={0}/file", "file/tiny: cannot be written"),
    ("output_dir={0}/file/below", "below/tiny: cannot be written"),
    ("output_dir=/proc/nowhere", "/proc/nowhere/tiny: cannot be written"),  # read-only, even for root
    (f"output_dir={'d' * 300}", "cannot be written ([Errno 36] File name too long"),
    ('output_dir="a\\u0000b"', "cannot be written (embedded null byte); choose another place"),
    ("output_dir={0}/link", "link/tiny: cannot be written ([Errno 40] Too many levels"),
    # names that leave output_dir, or are none
    ("name=../outside", "'../outside' is no directory inside of output_dir; choose another name"),
    ("name=a/../../outside", "is no directory inside of output_dir"),
    ("name=/outside", "is no directory inside of output_dir"),
    ("name=.", "is no directory inside of output_dir"),
    ('name=""', "is no directory inside of output_dir"),
    ('name="a\\u0000b"', "is no directory inside of output_dir"),
    (f"name={'n' * 300}", "cannot be written ([Errno 36] File name too long"),
    ("name=\udcff", "is no UTF-8; choose another name"),
    # numbers beyond what libraries hold
    ("seed=4294967296", "seed: input should be less than 4294967296"),
    ("seed=-1", "seed: input should be greater than or equal to 0"),
    ("data.synthetic.seed=4294967296", "data.synthetic.seed: input should be less than"),
    (f"seed={'9' * 5000}", "seed: unable to parse input string as an integer"),
    (f"seed=0x{'f' * 5000}", "not a int that cannot be written"),
    ("data.synthetic.train_size=1000000000000", "train_size: input should be less than or equal to"),
    ("sft.epochs=1000000000000000000", "sft.epochs: input should be less than or equal to 10000000"),
    ("ppo.steps=7000000000000000000000", "ppo.steps: input should be less than or equal to 10000000"),
    ("compute.threads=4294967296", "compute.threads: input should be less than or equal to 1024"),
    ("reward.sandbox_seconds=1e9", "sandbox_seconds: input should be less than or equal to 3600"),
    ("ppo.clip_range=1e300", "ppo.clip_range: input should be less than or equal to"),
    ("ppo.value_clip_range=1e39", "ppo.value_clip_range: input should be less than or equal to"),
    ("ppo.kl_coef=1e39", "ppo.kl_coef: input should be less than or equal to"),
    ("ppo.gamma=1e300", "ppo.gamma: input should be less than or equal to 1"),
    (f"ppo.kl_coef=1{'0' * 400}", "ppo.kl_coef: input should be a valid number"),
    ("ppo.temperature=1e-300", "ppo.temperature: input should be greater than or equal to 0.01"),
    ("sft.learning_rate=inf", "sft.learning_rate: input should be a finite number"),
    ("sft.learning_rate=nan", "sft.learning_rate: input should be"),
    # sizes that do not go together
    (f"{SHAPE}={{hidden_size=63}}", "hidden_size = 63 is no multiple of num_attention_heads = 4"),
    (f"{SHAPE}={{num_key_value_heads=3}}", "num_attention_heads = 4 is no multiple of num_key"),
    (f"{SHAPE}={{num_attention_heads=64}}", "heads are 1 wide; rotary embeddings need an even width"),
    (f"{SHAPE}={{head_dim=7}}", "heads are 7 wide"),
    (f"{SHAPE}={{vocab_size=300}}", "unknown key vocab_size; known keys: hidden_size"),
    (f"{SHAPE}={{hiden_size=64}}", "unknown key hiden_size"),
    (f"{SHAPE}={{hidden_size=0}}", "hidden_size: input should be greater than or equal to 1"),
    (f"{SHAPE}={{hidden_size=10000, num_hidden_layers=10000}}", "weights, 1e+09 are allowed"),
    # prompts and rewards that teach nothing
    ("ppo.advantage=group", "every advantage is 0; set ppo.samples_per_question to 2 or more"),
    ('prompt.template="?"', "prompt.template must hold {question}"),
    ("reward.function={0}/leaves.py:f", "cannot be imported (SystemExit: 5); mend it"),
    # depth
    (f"a={DEEP}", "unknown key a; known keys: compute"),
    (f"a{'.a' * 2000}=1", "unknown key a"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the configuration of a tiny run, and places where nothing can be."""
    folder = tmp_path_factory.mktemp("hostile")
    config = tiny_run.write_config(folder)
    config.write_text(config.read_text().replace("samples_per_question = 4\nminibatch_size = 16", ""))
    (folder / "file").touch()
    (folder / "link").symlink_to("link")
    (folder / "leaves.py").write_text("import sys\nsys.exit(5)\n")
    return folder


@pytest.mark.parametrize(("setting", "words"), SETTINGS, ids=[one[:40] for one, _ in SETTINGS])
def test_a_hostile_setting_is_named(folder: Path, ends: Ends, setting: str, words: str) -> None:
    said = ends("run", str(folder / "tiny.toml"), "--set", setting.replace("{0}", str(folder)))
    assert words in said
    assert len(said) < 2100
    assert not (folder / "outside").exists()


FILES: list[tuple[bytes, str]] = [
    (f"a = {DEEP}".encode(), "hostile.toml: not valid TOML: nested too deeply"),
    (b"seed = " + b"9" * 5000, "hostile.toml: not valid TOML: Exceeds the limit"),
    (b"\xff\xfe", "hostile.toml:1: cannot be read as UTF-8 text"),
    (b"", "hostile.toml: the section [model] is missing"),
    (b"seed = 1\0", "hostile.toml: not valid TOML"),
    (b'extends = "looped.toml"', "looped.toml: cannot be read ([Errno 40] Too many levels of symbolic"),
    (b'extends = "a\\u0000b"', "cannot be read (embedded null byte)"),
    (b'extends = "."', "cannot be read ([Errno 21] Is a directory"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), FILES, ids=range(len(FILES)))
def test_a_hostile_configuration_is_named(
    tmp_path: Path, ends: Ends, content: bytes, words: str
) -> None:
    (tmp_path / "looped.toml").symlink_to("looped.toml")
    (tmp_path / "hostile.toml").write_bytes(content)
    assert words in ends("run", str(tmp_path / "hostile.toml"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "check", "~/g.jsonl"], "~/g.jsonl: no such file"),
        (["data", "prepare", "gsm8k", "--cot", "program", "--source", "~/g.jsonl"], "no such file"),
        (["evaluate", "--model", "~/m", "--data", "~/g.jsonl", "--cot", "natural"], "no such file"),
    ],
)
def test_a_machine_that_knows_no_home_is_told_of_the_file(
    ends: Ends, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert words in ends(*arguments)


def test_a_tilde_is_the_home_wherever_a_path_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    keys = ("output_dir", "start_from", "model.name", "data.train", "data.test", "reward.function")
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfseed = 3")  # begins with a mark of UTF-8
    config = load_config(tmp_path / "a.toml", [f"{key}=~/x.py:f" for key in keys])
    settings = flat_settings(config)
    assert {settings[key] for key in keys} == {"/home/ann/x.py:f"}
    assert config.seed == 3


# Directories of runs.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with every file that a report or a comparison reads."""
    right = {"warmup": [0, 0], "sft": [1, 0], "reft": [1, 1]}
    drawn = {model: [[1, 0], [0, 0]] for model in right}
    run = write_run(tmp_path_factory.mktemp("runs") / "run", right, samples=drawn)
    rows = {model: read_jsonl(run / f"evaluation/{model}.jsonl") for model in right}
    write_result(run / "evaluation", rows, 100, 1)
    sample = {**rows["sft"][0], "step": 1}
    online = {"step": 1, "reward": 0.5, "accuracy": 0.5, "kl": 0.1, "statuses": {"ok": 2}}
    files: dict[str, Any] = {
        "run.json": {"command": "reftune run", "versions": {"torch": "2"}, "seed": 1},
        "data/report.json": {"train": 2, "validation": 2, "test": 2},
        "sft/result.json": {"best_epoch": 1, "best_validation_accuracy": 0.5},
        "ppo/result.json": {"best_step": 1, "best_validation_accuracy": 0.5},
        "sft/metrics.jsonl": [{"step": n, "epoch": n, "loss": 1.0 / n} for n in (1, 2)],
        "ppo/metrics.jsonl": [online, {**online, "step": 2, "validation_accuracy": 0.5}],
        "ppo/samples.jsonl": [sample],
    }
    for name, content in files.items():
        (run / name).parent.mkdir(exist_ok=True)
        lines = content if isinstance(content, list) else [content]
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def values(value: Any) -> Callable[[Path], None]:
    """Return what puts `value` in the place of every value of a file's objects."""

    def damage(path: Path) -> None:
        text = path.read_text()
        rows = [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
        path.write_text("".join(json.dumps(dict.fromkeys(row, value)) + "\n" for row in rows))

    return damage


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(data))


def void(_: object) -> None:
    pass


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def cut(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": content(b""), "half": halve, "cut": cut, "a directory": directory, "list": content(b"[]\n"),
    "an empty object": content(b"{}\n"), "a number": content(b"3\n"), "null": content(b"null\n"),
    "deep": content(DEEP.encode()), "not UTF-8": content(b"\xff\xfe\n"),
    **{f"all {value!r}"[:20]: values(value) for value in (None, "x", [], {}, -1, 1e308, 10**400)},
}  # fmt: skip
PARTS = [
    "run.json", "data/report.json", "sft/result.json", "ppo/result.json", "evaluation/result.json",
    "sft/metrics.jsonl", "ppo/metrics.jsonl", "ppo/samples.jsonl", "evaluation/sft.jsonl",
]  # fmt: skip


LEFT_OUT = ("sft/metrics.jsonl", "ppo/metrics.jsonl", "ppo/samples.jsonl", "evaluation/sft.jsonl")


def refusal(work: Callable[[], Any]) -> str:
    """Return why something is refused, nothing if it is not."""
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def repair(path: Path, whole: bytes) -> None:
    if path.is_dir():
        path.rmdir()
    path.write_bytes(whole)


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_run_is_reported_without_the_part_or_told_what_to_delete(run: Path, part: str) -> None:
    whole = (run / part).read_bytes()
    for name, damage in DAMAGES.items():
        damage(run / part)
        said = refusal(lambda: (report._context(read_run(run)), final_table(run)))
        assert not said or re.search(rf"{run / part}.*; (delete it|write one)", said), (name, said)
        assert not said or part not in LEFT_OUT or name == "a directory", (name, said)
        repair(run / part, whole)


def test_figures_are_drawn_of_what_can_be_read(run: Path, ends: Ends) -> None:
    rows = [{"step": 1, "epoch": 1e308, "loss": math.nan}, {"step": 2, "epoch": -1, "loss": math.inf}]
    rows += [{"step": 3, "loss": 1e308, "validation_accuracy": -1e308}, {"step": "4"}, {"step": 1e308}]
    rows += [{"step": 5, "statuses": {"ok": "many"}}, {"step": 6, "statuses": {"ok": 0}}]
    write_jsonl(run / "sft/metrics.jsonl", rows)
    write_jsonl(run / "ppo/metrics.jsonl", [{"step": 6, "statuses": {}, "reward": None}, *rows])
    assert f"report: {run}" in ends("report", str(run), code=0)
    page = (run / "report.md").read_text()
    assert "sft/metrics.jsonl: 2 of 7 lines cannot be read and are left out" in page


@pytest.mark.parametrize("name", ["report.html", "report.md", "report_files"])
def test_pages_that_cannot_be_written_are_named(run: Path, ends: Ends, name: str) -> None:
    if name == "report_files":
        (run / name).touch()
    else:
        (run / name).mkdir()
    assert f"{run / name}: cannot be written" in ends("report", str(run))


def test_an_unfinished_run_is_reported_and_that_is_no_error(run: Path, ends: Ends) -> None:
    shutil.rmtree(run / "evaluation")
    said = ends("report", str(run), code=0)
    assert "not evaluated yet; finish the run" in said
    assert f"reftune: report: {run / 'report.html'}" in said


@pytest.mark.parametrize(
    "part", ["evaluation/result.json", "evaluation/sft.jsonl", "evaluation/reft.jsonl"]
)
def test_a_damaged_run_is_compared_with_nothing(run: Path, part: str) -> None:
    whole = (run / part).read_bytes()
    for name, damage in DAMAGES.items():
        damage(run / part)
        with pytest.raises(UserError) as told:
            compare_runs([run])
        named = str(run / part) in str(told.value) or "different questions" in str(told.value)
        assert named, (name, str(told.value))
        repair(run / part, whole)
    assert compare_runs([run]).questions == 2
