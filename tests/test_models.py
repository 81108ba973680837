from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import reftune.model.policy
from precision import CLOSE, float64
from reftune.config import Model
from reftune.model.batch import collate
from reftune.model.loading import (
    build_model,
    load_model,
    load_policy,
    load_tokenizer,
    make_policy,
)
from reftune.model.policy import PolicyWithValue, TokenStats
from reftune.model.saving import save_policy
from reftune.model.scratch import train_tokenizer
from reftune.problem import UserError
from reftune.training.learner import Learner
from reftune.training.optimizer import make_optimizer
from tiny_models import EOS, FAMILIES, VOCAB, tiny_model

SHARED = [[20, 21, 22], [30, 31, 32, 33, 34, 35, 36, 37, 38], [20, 21, 22], [20, 21, 22], [50]]
DIFFERENT = [[20, 21, 22], [30, 31, 32, 33, 34, 35, 36, 37, 38], [23], [24, 25, 26, 27], [50]]
WEIGHTS = "model.safetensors"


def make_responses() -> list[list[int]]:
    """Return five responses of 1 to 12 tokens, some of which end with the EOS."""
    rng = random.Random(3)
    rows = [[rng.randrange(2, VOCAB) for _ in range(n)] for n in (9, 1, 4, 12, 7)]
    return [[*row[:-1], EOS] if i % 2 else row for i, row in enumerate(rows)]


def with_critic(family: str = "llama", kind: str = "shared") -> PolicyWithValue:
    """Return a tiny policy whose critic does not say 0."""
    policy = PolicyWithValue(tiny_model(family), kind)
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    torch.nn.init.constant_(policy.value_head.bias, 0.5)
    return policy


def score_row(policy: PolicyWithValue, prompt: list[int], response: list[int]) -> list[list[float]]:
    """Return log-probabilities, entropies and values of one row, token by token, without any padding."""
    ids, result = torch.tensor([prompt + response]), []
    logits = policy.policy(ids).logits[0].double()
    states = policy.policy.base_model(ids).last_hidden_state[0]
    for t, token in enumerate(response):
        weights = [math.exp(x / 0.7) for x in logits[len(prompt) - 1 + t].tolist()]
        probabilities = [w / sum(weights) for w in weights]
        state = states[len(prompt) - 1 + t]
        value = 0.5 + float(state @ policy.value_head.weight[0]) if policy.value_head else 0.0
        entropy = -sum(p * math.log(p) for p in probabilities)
        result.append([math.log(probabilities[token]), entropy, value])
    return result


@pytest.mark.parametrize("prompts", [SHARED, DIFFERENT], ids=["shared", "different"])
@pytest.mark.parametrize("family", FAMILIES)
@float64()
@torch.no_grad()
def test_scores_are_those_of_each_row_by_itself(family: str, prompts: list[list[int]]) -> None:
    policy, responses = with_critic(family), make_responses()
    scores = torch.stack(policy(collate(prompts, responses), 0.7)[:3], dim=-1)
    for row, prompt, response in zip(scores, prompts, responses, strict=True):
        expected = torch.tensor(score_row(policy, prompt, response))
        torch.testing.assert_close(row[: len(response)], expected, atol=CLOSE, rtol=0)
        assert not row[len(response) :].any()


@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing() -> None:
    policy, responses = with_critic(), make_responses()
    for prompts in (SHARED, DIFFERENT):
        batch = collate(prompts, responses)
        expected = policy(batch)
        for i, length in enumerate(batch.prompt_lengths):
            batch.prompts[i, : batch.prompts.shape[1] - length] = 40 + i
        for i, length in enumerate(batch.response_lengths):
            batch.responses[i, length:] = 50 + i
        assert all(torch.equal(a, b) for a, b in zip(policy(batch)[:3], expected[:3], strict=True))


@float64()
@torch.no_grad()
def test_responses_of_one_token_are_scored() -> None:
    policy, prompts = with_critic(), SHARED[:3]
    scores = torch.stack(policy(collate(prompts, [[7], [8], [9]]), 0.7)[:3], dim=-1)
    expected = [score_row(policy, p, [x]) for p, x in zip(prompts, (7, 8, 9), strict=True)]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=CLOSE, rtol=0)


@float64()
def test_chunks_of_logits_give_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, batch = with_critic(), collate(SHARED, make_responses())
    seen: list[int] = []
    head = policy.policy.get_output_embeddings()
    head.register_forward_hook(lambda _, args, output: seen.append(output[..., 0].numel()))

    def scores_and_gradients() -> tuple[TokenStats, dict[str, Tensor]]:
        policy.zero_grad()
        scores = policy(batch, 0.7)
        weights = torch.linspace(-1, 1, scores.logprobs.numel()).view_as(scores.logprobs)
        (weights * scores.logprobs + scores.values**2).sum().backward()
        gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
        return scores, gradients

    expected, expected_gradients = scores_and_gradients()
    tokens = sum(map(len, make_responses()))  # all different
    assert seen == [tokens]
    seen.clear()
    monkeypatch.setattr(reftune.model.policy, "LOGITS_PER_CHUNK", 7 * VOCAB + 1)
    scores, gradients = scores_and_gradients()
    assert max(seen) == 7
    assert sum(seen) == 2 * tokens  # in forward, and again in backward
    for actual, wanted in zip(scores, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=CLOSE, rtol=0)
    assert gradients.keys() == expected_gradients.keys() == dict(policy.named_parameters()).keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=CLOSE, rtol=CLOSE)


@float64()
@torch.no_grad()
def test_a_soft_cap_is_noticed_while_logits_are_still_small() -> None:
    policy = PolicyWithValue(tiny_model("gemma2", initializer_range=0.02, final_logit_softcapping=30.0))
    policy.policy.get_output_embeddings().weight *= 1000  # as if by training
    assert policy.policy(torch.tensor([[20, 21]])).logits.abs().max() > 25
    logprobs = policy(collate([[20, 21, 22]], [[7, 8]]), 0.7).logprobs[0].tolist()
    expected = [x for x, _, _ in score_row(policy, [20, 21, 22], [7, 8])]
    assert logprobs == pytest.approx(expected, abs=CLOSE)


@torch.no_grad()
def test_log_probabilities_and_entropies_by_hand() -> None:
    model = tiny_model("codegen")  # its head has a bias: with no weight, every position says the same
    model.lm_head.weight.zero_()
    model.lm_head.bias.fill_(-1e4)
    model.lm_head.bias[10], model.lm_head.bias[11] = math.log(0.8), math.log(0.2)
    policy, batch = PolicyWithValue(model), collate([[20], [21, 22]], [[10, 11], [11]])
    plain, warm = policy(batch), policy(batch, 2.0)  # at temperature 2: 2/3 and 1/3
    assert plain.logprobs.tolist() == [
        pytest.approx([-0.2231436, -1.6094379], abs=1e-5), pytest.approx([-1.6094379, 0], abs=1e-5)
    ]  # fmt: skip
    assert plain.entropies.tolist() == [
        pytest.approx([0.5004024, 0.5004024], abs=1e-5), pytest.approx([0.5004024, 0], abs=1e-5)
    ]  # fmt: skip
    assert warm.logprobs[0].tolist() == pytest.approx([-0.4054651, -1.0986123], abs=1e-5)
    assert warm.entropies[0].tolist() == pytest.approx([0.6365142, 0.6365142], abs=1e-5)
    assert not plain.values.any()


def test_an_untrained_critic_says_0_and_none_at_all_has_no_parameters() -> None:
    batch = collate(SHARED, make_responses())
    for kind in ("none", "shared", "separate"):
        policy = PolicyWithValue(tiny_model(), kind)
        assert not policy(batch).values.any()
        names = [name for name, _ in policy.named_parameters()]
        assert any(name.startswith("value_") for name in names) == (kind != "none")


@float64()
def test_a_separate_critic_reads_and_teaches_a_trunk_of_its_own() -> None:
    shared, separate = with_critic(kind="shared"), with_critic(kind="separate")
    assert shared.value_head is not None
    assert separate.value_head is not None
    separate.value_head.load_state_dict(shared.value_head.state_dict())
    batch = collate(SHARED, make_responses())
    values = separate(batch).values
    torch.testing.assert_close(values, shared(batch).values)  # it starts as a copy
    values.square().sum().backward()
    assert all(p.grad is None for p in separate.policy.parameters())
    assert separate.value_backbone is not None
    assert all(p.grad is not None and p.grad.any() for p in separate.value_backbone.parameters())
    shared(batch).values.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in shared.policy.base_model.parameters())
    with torch.no_grad():
        for parameter in separate.policy.parameters():
            parameter.mul_(2)
    assert torch.equal(separate(batch).values, values)


@pytest.mark.parametrize("family", ["llama4", "opt", "rembert"])
@float64()
def test_a_critic_reads_the_states_whatever_their_width(family: str) -> None:
    policy = PolicyWithValue(tiny_model(family), "shared")
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.weight)
    prompt, response = [20, 21, 22], [30, 31, 32, 33, 34]
    outputs = {  # of the last layer of all, without what comes before logits
        "llama4": lambda ids: policy.policy.model(ids),
        "opt": lambda ids: policy.policy.model(ids),
        "rembert": lambda ids: policy.policy.rembert(ids),
    }
    states = outputs[family](torch.tensor([prompt + response])).last_hidden_state[0, 2:-1]
    values = policy(collate([prompt], [response])).values[0]
    torch.testing.assert_close(values, states @ policy.value_head.weight[0], atol=CLOSE, rtol=CLOSE)


@pytest.mark.usefixtures("kept_gradients")
def test_only_what_reads_and_writes_text_is_trained() -> None:
    """Processes that share the work wait for the gradient of every weight that is trained."""
    model = tiny_model("gemma3")
    policy = make_policy(model, Model(name="tiny"), critic=True, trainable=True)
    optimizer = make_optimizer(policy, 0.1, 0.1)
    learner = Learner(policy, optimizer, Accelerator(cpu=True), 1000, 1.0)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    batch = collate(SHARED, make_responses())

    def loss(policy: Any, rows: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        stats = policy(batch)
        return stats.logprobs.sum() + (stats.values - 1).square().sum(), {}

    learner.step([0], [9], loss)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    towers = ("policy.model.vision_tower", "policy.model.multi_modal_projector")
    assert trained == {name for name in before if not name.startswith(towers)}
    assert trained < before.keys()
    for name, p in policy.named_parameters():
        assert (p.grad is not None) == (name in trained)
        assert torch.equal(p, before[name]) == (name not in trained)


@pytest.mark.parametrize("kind", ["none", "shared", "separate"])
@torch.no_grad()
def test_a_saved_model_is_an_ordinary_one_without_its_critic(kind: str, tmp_path: Path) -> None:
    policy = PolicyWithValue(tiny_model(), kind)
    for name, parameter in policy.named_parameters():
        if name.startswith("value_"):
            parameter.add_(0.1)
    save_policy(policy, tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    ids = torch.tensor([[20, 21, 22]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain(ids).logits, policy.policy(ids).logits)
    again, batch = load_policy(tmp_path, Model(name="any")), collate(SHARED, make_responses())
    assert torch.equal(again(batch).logprobs, policy(batch).logprobs)
    assert policy(batch).values.any() == (kind != "none")


def test_every_digit_is_a_token_however_often_a_number_occurs() -> None:
    tokenizer = train_tokenizer(["She has 1234 apples, 1234 pears and 12.50 dollars.\n"] * 50, 400)
    for text in ("1234", " 1234", "x = 1234 + 12.50", "a1b22"):
        tokens = tokenizer.tokenize(text)
        assert "".join(tokens).count("1") == text.count("1")
        assert all(sum(c.isdigit() for c in token) <= 1 for token in tokens)
    assert tokenizer.tokenize(" apples") == ["Ġapples"]
    assert tokenizer.tokenize("4 apples") == ["4", "Ġapples"]


def test_text_survives_the_tokenizer() -> None:
    tokenizer = train_tokenizer(["def solution():\n    return 1\n"] * 9, 300)
    assert len(tokenizer) <= 300
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<eos>")
    for text in (
        "", " ", "\n\n  \n", "  two  spaces ", "tab\tand\r\nlines\r", "def f():\n        return 3.50\n",
        "Zoë paid 5 € «naïve» 数学 ٣٤ 🤖👩\u200d🔬\u2028\u00a0end", "x_1 = y2**-3  # 50% of $1,000",
        "\x00\x7f",
    ):  # fmt: skip
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_scratch_model_depends_on_its_seed_alone() -> None:
    settings, texts = Model(scratch="tiny", scratch_overrides={"num_hidden_layers": 1}), ["a b c 1 2 3"]
    first, second, other = (build_model(settings, texts, seed)[0].state_dict() for seed in (1, 1, 2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_scratch_model_has_the_size_asked_for() -> None:
    model, tokenizer = build_model(
        Model(scratch="tiny", scratch_overrides={"hidden_size": 64, "num_hidden_layers": 1}), ["1 2"], 0
    )
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (64, 1)
    assert model.config.intermediate_size == 384
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 64)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    eos = tokenizer.eos_token_id
    assert model.config.eos_token_id == model.generation_config.eos_token_id == eos
    assert model.generation_config.pad_token_id == eos
    assert model.get_input_embeddings().padding_idx is None  # or the EOS would not learn as an input


@pytest.mark.parametrize("std", [0.02, 0.06])
def test_the_first_weights_of_a_scratch_model_spread_as_asked(std: float) -> None:
    settings = Model(scratch="tiny") if std == 0.02 else Model(scratch="tiny", init_std=std)
    model, _ = build_model(settings, ["1 2"], 0)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:  # 16,384 numbers or more: the estimate is within 2%, 3.6 standard errors
            assert weight.std().item() == pytest.approx(std, rel=0.02), name
            assert abs(weight.mean().item()) < 0.05 * std, name
        else:
            assert (weight == 1).all(), name  # the norms


def test_a_model_and_tokenizer_are_loaded_by_name(tmp_path: Path) -> None:
    model, tokenizer = build_model(
        Model(scratch="tiny", scratch_overrides={"num_hidden_layers": 1}), ["a b"], 0
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, same_tokenizer = build_model(Model(name=str(tmp_path)), [], 7)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert same_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert same_tokenizer.eos_token == "<eos>"


def test_an_unknown_scratch_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.scratch: unknown size huge; choose tiny or small"):
        build_model(Model(scratch="huge"), [], 0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 100], ids=["missing", "empty", "garbage"])
def test_a_directory_without_weights_is_refused(content: bytes | None, saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    if content is not None:
        (saved / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=f"^{saved}: cannot be loaded: .*") as error:
        load_model(saved)
    assert "\n" not in str(error.value)


def test_a_cut_off_file_of_weights_is_refused(saved: Path) -> None:
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"^{saved}: cannot be loaded: "):
        load_model(saved)


def test_weights_that_are_missing_are_not_made_up(saved: Path) -> None:
    weights = load_file(saved / WEIGHTS)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, saved / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"^{saved}: .*model.layers.1.mlp.up_proj.weight"):
        load_model(saved)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    (saved / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}), encoding="utf-8")
    with pytest.raises(UserError, match=f"^{saved}: cannot be loaded: "):
        load_model(saved)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_directory_that_is_not_there_is_called_so(load: object, tmp_path: Path) -> None:
    assert callable(load)
    with pytest.raises(UserError, match=f"^{tmp_path}/nowhere: .*no such directory"):
        load(tmp_path / "nowhere")


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=f"^{tmp_path}: the tokenizer has no EOS token; set model.eos_token"
    ):
        load_tokenizer(tmp_path)
