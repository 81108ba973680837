"""The list of all settings: complete, the same on the page, found by the names of other libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import start
from reftune.config.files import load_config
from reftune.config.reference import all_keys, editors_schema, listing, markdown
from reftune.config.synonyms import NOT_SUPPORTED, SYNONYMS
from reftune.problem import UserError

ROOT = Path(__file__).parents[1]
LEAVES = {key.name.rpartition(".")[2] for key in all_keys()}


@pytest.mark.parametrize("key", all_keys(), ids=lambda key: key.name)
def test_every_key_says_in_a_line_what_it_is(key: object) -> None:
    line = key.line  # type: ignore[attr-defined]
    assert 3 < len(line) < 160
    assert not line.endswith(".")


def test_a_key_is_told_with_type_default_line_and_other_names() -> None:
    [rank, *_] = all_keys("lora")
    assert (rank.name, rank.kind, rank.default) == ("lora.rank", "integer, ≥ 0, ≤ 4096", "0")
    assert rank.elsewhere == "lora_r, r"
    [columns] = all_keys("data.columns.question")
    assert (columns.kind, columns.default) == ("string", '"question"')
    [style] = all_keys("prompt.style")
    assert style.kind == '"auto", "plain", "chat"'
    [tokens] = all_keys("compute.tokens_per_microbatch")
    assert (tokens.kind, tokens.default) == ("integer, ≥ 1", "")  # 10**7 is no bound that matters
    [scratch] = all_keys("model.scratch_overrides")
    assert (scratch.kind, scratch.default) == ("table", "{}")
    assert listing("lora.rank", 60).splitlines() == [
        "lora.rank = 0  [integer, ≥ 0, ≤ 4096]",
        "    0: there is none, and all weights are trained (in TRL,",
        "    verl or peft: lora_r, r)",
    ]
    assert listing("lora.alpha", 80).splitlines()[0] == "lora.alpha  [number, > 0]"


def test_sections_are_told_alone() -> None:
    names = [key.name for key in all_keys("data.columns")]
    assert names == [f"data.columns.{x}" for x in ("id", "question", "answer", "chain", "choices")]
    assert {key.name.partition(".")[0] for key in all_keys("lora")} == {"lora"}
    for wrong, words in {
        "rewards": "did you mean reward?", "ppo.kl_cof": "did you mean kl_coef?",
        "kl_coef": "there is ppo.kl_coef", "beta": "it is called ppo.kl_coef here",
        "data.columns.x": "known keys: answer, chain, choices, id, question",
    }.items():  # fmt: skip
        with pytest.raises(UserError) as refused:
            all_keys(wrong)
        assert str(refused.value) == f"no key or section is called {wrong}; {words}"


def test_the_page_is_that_of_this_version() -> None:
    written = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert written == markdown(), "reftune config --markdown > docs/configuration.md"


def test_an_editors_schema_knows_what_files_may_hold() -> None:
    schema = json.loads(editors_schema())
    assert {"extends", "name", "ppo"} <= schema["properties"].keys()
    assert schema["additionalProperties"] is False  # an editor underlines what is misspelt
    assert "required" not in schema
    assert schema["$defs"]["Ppo"]["properties"]["kl_coef"]["minimum"] == 0


def test_other_names_lead_to_keys_that_there_are() -> None:
    names = {key.name for key in all_keys()}
    assert set(SYNONYMS.values()) <= names
    assert not {*SYNONYMS, *NOT_SUPPORTED} & LEAVES
    assert not SYNONYMS.keys() & NOT_SUPPORTED.keys()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[ppo]\nbeta = 0.1", "unknown key ppo.beta; it is called ppo.kl_coef here"),
        ("[ppo]\nlr = 0.1", "unknown key ppo.lr; it is called ppo.learning_rate here"),
        ("[compute]\nbf16 = true", "unknown key compute.bf16; it is called model.dtype here"),
        ('report_to = "wandb"', "unknown key report_to; it is called compute.trackers here"),
        ("[ppo]\ntop_p = 0.9", "unknown key ppo.top_p; it is not supported: the samples must come from"),
        ("[ppo]\nmax_new_tokens = 9", "unknown key ppo.max_new_tokens; there is prompt.max_new_tokens"),
        ("kl_coef = 0.1", "unknown key kl_coef; there is ppo.kl_coef"),
        ("[ppo]\nkl_cof = 0.1", "unknown key ppo.kl_cof; did you mean kl_coef?"),
        ("[lora]\nzzz = 1", "unknown key lora.zzz; known keys: alpha, dropout, rank, targets"),
    ],
)
def test_names_of_other_libraries_get_ours(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "my.toml"
    head = "" if text.startswith("[") else text + "\n"
    path.write_text(f'{head}[model]\nscratch = "tiny"\n{"" if head else text}', encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_config(path)
    assert f"{path}: {told}" in str(error.value)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def output(*arguments: str) -> str:
        assert start(monkeypatch, "config", *arguments) == 0
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "80")
    assert all(len(line) <= 80 for line in output("ppo").splitlines())
    assert output("ppo.kl_coef").startswith(
        "ppo.kl_coef = 0.01  [number, ≥ 0]\n    beta of the KL penalty"
    )
    assert output("--markdown") == markdown()
    assert json.loads(output("--schema")) == json.loads(editors_schema())
