"""Settings that would do nothing are refused with the key to change, where the user surely errs."""

from __future__ import annotations

from pathlib import Path

import pytest

from reftune.config import Config
from reftune.config.checks import FILES
from reftune.config.files import dump_config, load_config, parse_config
from reftune.data.sources import ARROW, CSV, JSON, PARQUET
from reftune.problem import UserError

GIVEN = "model.name=some/model"
ALL = 'methods=["offline_st", "online_st", "reft"]'
GROUP = 'ppo.advantage = "group" has no critic; leave the key out, or set ppo.advantage = "gae"'
GROUPED = ["ppo.advantage=group", "ppo.samples_per_question=2"]
NO_SPLITS = "is no directory or hub data set, and has no splits; leave it out"
FILE = ["data.train=a.jsonl", "data.test=b.CSV"]

# What makes a setting do nothing, the setting, the end of the sentence, and what gives it an effect.
TABLE: list[tuple[list[str], str, str, list[str]]] = [
    (
        [GIVEN, "sft.epochs=0"], "sft.learning_rate=1e-4",
        "sft.epochs = 0 leaves the SFT stage out; leave the key out, too, or raise sft.epochs",
        ["sft.epochs=4"],
    ),
    (
        [], "evaluation.base=true", "a new model knows no answers; leave it out, or set model.name",
        [GIVEN],
    ),
    ([], "offline_st.epochs=3", 'no offline self-training is run; add "offline_st" to methods', [ALL]),
    ([], "online_st.steps=3", 'no online self-training is run; add "online_st" to methods', [ALL]),
    (["methods=[]"], "ppo.kl_coef=0.1", 'no PPO is run; add "reft" to methods', [ALL]),
    (["methods=[]"], "model.value_model=separate", 'no PPO is run; add "reft" to methods', [ALL]),
    (
        ["evaluation.samples=2"], "reranker.epochs=2",
        "no reranker is trained; set evaluation.rerank = true", ["evaluation.rerank=true"],
    ),
    (
        ['methods=["online_st"]'], "warmup_samples.per_question=4",
        "nobody learns from warm-up samples;"
        ' add "offline_st" to methods, or set evaluation.rerank = true', [ALL],
    ),
    (
        ["evaluation.samples=2"], "warmup_samples.temperature=0.5",
        "nobody learns from warm-up samples;"
        ' add "offline_st" to methods, or set evaluation.rerank = true', ["evaluation.rerank=true"],
    ),
    (
        [ALL, "warmup_samples.per_question=4"], "offline_st.keep=5",
        "no question has so many samples; lower it, or raise warmup_samples.per_question",
        ["warmup_samples.per_question=5"],
    ),
    (
        [], "evaluation.temperature=0.7",
        "test questions are answered greedily; set evaluation.samples", ["evaluation.samples=1"],
    ),
    (GROUPED, "ppo.gae_lambda=0.95", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "ppo.gamma=0.9", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "ppo.value_coef=1.0", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "ppo.whiten=true", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "ppo.value_clip_range=0.1", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "ppo.value_head_learning_rate=0.01", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "ppo.value_pretraining_steps=2", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "model.value_model=separate", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "model.value_hidden_size=8", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "model.value_targets=normalised", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "ppo.value_epochs=1", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "ppo.value_lambda=1.0", GROUP, ["ppo.advantage=gae"]),
    (GROUPED, 'ppo.value_features=["group"]', GROUP, ["ppo.advantage=gae"]),
    (GROUPED, "ppo.lambda_length_alpha=0.5", GROUP, ["ppo.advantage=gae"]),
    (["methods=[]"], "model.value_hidden_size=8", 'no PPO is run; add "reft" to methods', [ALL]),
    (["methods=[]"], "model.value_targets=two_hot", 'no PPO is run; add "reft" to methods', [ALL]),
    (
        ["model.value_targets=two_hot"], "ppo.value_clip_range=0.1",
        "a cross-entropy is not clipped; leave one of them out", ["model.value_targets=normalised"],
    ),
    (
        ["ppo.samples_per_question=2"], "ppo.scale_rewards=true",
        'ppo.advantage = "gae" compares no groups; set ppo.advantage = "group"', GROUPED,
    ),
    (
        ["ppo.advantage=rloo", "ppo.samples_per_question=2"], "ppo.whiten=true",
        GROUP.replace('"group"', '"rloo"'), ["ppo.advantage=gae"],
    ),
    (
        ["ppo.advantage=reinforce++", "ppo.samples_per_question=2"], "ppo.scale_rewards=true",
        'ppo.advantage = "reinforce++" has a scale of its own; set ppo.advantage = "group"', GROUPED,
    ),
    (
        ["ppo.samples_per_question=2"], "ppo.difficulty_range=[0, 1]",
        "no success rate is out of it; narrow it, for example to [0.2, 0.8]",
        ["ppo.difficulty_range=[0.0, 0.9]"],
    ),
    (
        ["ppo.kl_coef=0"], "ppo.reference_reset_steps=5",
        "with ppo.kl_coef = 0 there is no reference; raise ppo.kl_coef", ["ppo.kl_coef=0.1"],
    ),
    (
        ["ppo.steps=5"], "ppo.reference_reset_steps=5",
        "no step comes after it; set it below ppo.steps", ["ppo.steps=6"],
    ),
    (
        ["ppo.value_coef=0"], "ppo.value_clip_range=0.1",
        "with ppo.value_coef = 0 the critic's head does not learn; raise ppo.value_coef",
        ["ppo.value_coef=0.1"],
    ),
    (
        ["ppo.value_coef=0"], "ppo.value_pretraining_steps=2",
        "the critic learns nothing; raise ppo.value_coef, or set ppo.value_features",
        ['ppo.value_features=["surprise"]'],
    ),
    (
        [], "model.value_span=[0.0, 2.0]",
        'only a classified value has one; set model.value_targets = "two_hot"',
        ["model.value_targets=two_hot"],
    ),
    (
        ["ppo.lambda_length_alpha=0.5"], "ppo.gae_lambda=0.9",
        "lambda goes by the length of a response; leave it out, or set ppo.lambda_length_alpha = 0",
        ["ppo.lambda_length_alpha=0"],
    ),
    (
        ["ppo.value_coef=0"], "model.value_model=separate",
        "with ppo.value_coef = 0 the critic's head does not learn; raise ppo.value_coef",
        ["ppo.value_coef=0.1"],
    ),
    (
        ["ppo.value_coef=0"], "ppo.value_epochs=2",
        "with ppo.value_coef = 0 the critic's head does not learn; raise ppo.value_coef",
        ["ppo.value_coef=0.1"],
    ),
    (
        ["ppo.questions_per_step=3", "ppo.samples_per_question=2"], "ppo.minibatch_size=7",
        "a batch has only ppo.questions_per_step x ppo.samples_per_question samples; lower it",
        ["ppo.minibatch_size=6"],
    ),
    (
        ["ppo.ppo_epochs=1"], "ppo.clip_range=0.1",
        "a batch's only update starts at the policy that sampled it, with nothing to clip;"
        " raise ppo.ppo_epochs or lower ppo.minibatch_size", ["ppo.ppo_epochs=2"],
    ),
    (
        ["ppo.ppo_epochs=1", "ppo.minibatch_size=32"], "ppo.value_clip_range=0.1",
        "a batch's only update starts at the policy that sampled it, with nothing to clip;"
        " raise ppo.ppo_epochs or ppo.value_epochs, or lower ppo.minibatch_size",
        ["ppo.minibatch_size=31"],
    ),
    (
        ["ppo.ppo_epochs=1"], "ppo.value_clip_range=0.1",
        "a batch's only update starts at the policy that sampled it, with nothing to clip;"
        " raise ppo.ppo_epochs or ppo.value_epochs, or lower ppo.minibatch_size",
        ["ppo.value_epochs=1"],
    ),
    (
        ["ppo.ppo_epochs=1"], "ppo.dual_clip=3",
        "a batch's only update starts at the policy that sampled it, with nothing to clip;"
        " raise ppo.ppo_epochs or lower ppo.minibatch_size", ["ppo.ppo_epochs=2"],
    ),
    (
        ["ppo.importance_sampling_cap=0"], "ppo.importance_sampling=sequence_truncate",
        "with ppo.importance_sampling_cap = 0 nothing is corrected; raise it, or leave it out",
        ["ppo.importance_sampling_cap=2"],
    ),
    (
        ["ppo.importance_sampling=sequence_mask"], "ppo.importance_sampling_cap=3",
        "a mask has bounds; set ppo.importance_sampling_max",
        ["ppo.importance_sampling=sequence_truncate"],
    ),
    (
        [], "ppo.importance_sampling_max=3",
        'weights are capped; set ppo.importance_sampling = "token_mask" or "sequence_mask"',
        ["ppo.importance_sampling=token_mask"],
    ),
    (
        ["ppo.kl_coef=0"], "ppo.kl_penalty=loss_k3",
        "with ppo.kl_coef = 0 there is no KL penalty; raise ppo.kl_coef", ["ppo.kl_coef=0.1"],
    ),
    (
        ["ppo.policy_loss=dppo_tv"], "ppo.clip_range_high=0.3",
        'ppo.policy_loss = "dppo_tv" clips no ratio; set ppo.tv_range', ["ppo.policy_loss=gspo"],
    ),
    (
        ["ppo.policy_loss=cispo", "ppo.clip_range_high=5"], "ppo.clip_range=0.1",
        'ppo.policy_loss = "cispo" bounds the ratio by ppo.clip_range_high alone; leave it out',
        ["ppo.policy_loss=clip"],
    ),
    (
        ["ppo.policy_loss=gspo", "ppo.clip_range=3e-4"], "ppo.dual_clip=3",
        'only ppo.policy_loss = "clip" has that bound; leave one of them out', ["ppo.policy_loss=clip"],
    ),
    (
        [], "ppo.tv_range=0.1",
        'no token drops out by it; set ppo.policy_loss = "dppo_tv"', ["ppo.policy_loss=dppo_tv"],
    ),
    (
        ["ppo.samples_per_question=2"], "ppo.live_denominator=true",
        'ppo.advantage = "gae" learns from every sample; set ppo.advantage = "group"', GROUPED,
    ),
    (
        [], "model.float32_head=true",
        'everything is in float32; leave it out, or set model.dtype = "bfloat16"',
        ["model.dtype=bfloat16"],
    ),
    (
        ["reward.function=a.py:f"], "reward.partial_reward=0.2",
        "reward.function says what a wrong answer is worth; leave one of them out",
        ["reward.partial_reward=0"],
    ),
    (
        ["data.synthetic.choices=5"], "reward.partial_reward=0.2",
        "a wrong letter never earns it; leave it out, or set data.synthetic.choices = 0",
        ["data.synthetic.choices=0"],
    ),
    (
        ["data.cot=program"], "prompt.trigger=So:",
        'a program returns its answer; set data.cot = "natural"', ["data.cot=natural"],
    ),
    (
        ["data.cot=program"], "data.synthetic.retold=true",
        'a program works out, it says nothing again; set data.cot = "natural"',
        ["data.cot=natural"],
    ),
    (
        ["prompt.answer_style=boxed", "data.cot=natural"], "prompt.trigger=So:",
        'answers are written in another style; leave it out, or set prompt.answer_style = "trigger"',
        ["prompt.answer_style=trigger"],
    ),
    (
        ["prompt.style=chat", "model.name=gpt2", "data.cot=natural"], "prompt.trigger=So:",
        'answers are written in another style; leave it out, or set prompt.answer_style = "trigger"',
        ["prompt.style=auto"],
    ),
    (
        ["prompt.style=chat", "model.name=gpt2"], "prompt.repeat_question=true",
        'the program is written whole; leave it out, or set prompt.answer_style = "function"',
        ["prompt.answer_style=function"],
    ),
    (
        ["prompt.style=plain", "model.name=gpt2"], "prompt.system=Hi",
        'plain text has no chat template; leave it out, or set prompt.style = "chat"',
        ["prompt.style=auto"],
    ),
    (
        ["model.scratch=tiny"], "prompt.template_args.enable_thinking=true",
        'plain text has no chat template; leave it out, or set prompt.style = "chat"',
        ["model.name=gpt2"],
    ),
    (
        ["data.cot=natural"], "reward.sandbox_seconds=1",
        'only programs run in the sandbox; set data.cot = "program"', ["data.cot=program"],
    ),
    (
        ["data.cot=natural"], "prompt.repeat_question=true",
        'only programs can carry the question; set data.cot = "program"', ["data.cot=program"],
    ),
    (
        ["model.name=gpt2"], "model.vocab_size=300",
        "model.name has a shape and a tokenizer of its own; leave it out, or set model.scratch",
        ["model.scratch=small"],
    ),
    (
        ["model.name=gpt2"], "model.scratch_overrides.hidden_size=8",
        "model.name has a shape and a tokenizer of its own; leave it out, or set model.scratch",
        ["model.scratch=small"],
    ),
    (
        ["model.name=gpt2"], "model.init_std=0.06",
        "model.name has a shape and a tokenizer of its own; leave it out, or set model.scratch",
        ["model.scratch=small"],
    ),
    (
        ["model.scratch=small"], "model.eos_token='</s>'",
        "a new model's texts end with <eos>; leave it out, or set model.name", ["model.name=gpt2"],
    ),
    (
        ["model.name=gpt2", "sft.epochs=0"], "data.max_chains=5",
        "nobody learns from chains; leave it out, or raise sft.epochs",
        ['methods=["online_st", "reft"]'],
    ),
    (
        FILE, "data.synthetic.people=4",
        'no problems are generated; set data.train or data.test to "synthetic"',
        ["data.test=synthetic"],
    ),
    (
        ["data.train=a.json"], "data.synthetic.train_size=50",
        "data.train has its own problems; set data.max_train to use fewer", ["data.train=synthetic"],
    ),
    (
        ["data.test=a.json"], "data.synthetic.test_size=50",
        "data.test has its own problems; set data.max_test to use fewer", ["data.test=synthetic"],
    ),
    (
        [], "data.columns.question=q",
        "generated problems have no columns; set data.train or data.test", ["data.test=b.csv"],
    ),
    ([], "lora.alpha=8", "no adapter is trained; set lora.rank", ["lora.rank=4"]),
    ([], "lora.dropout=0.1", "no adapter is trained; set lora.rank", ["lora.rank=4"]),
    ([], "lora.targets=q_proj", "no adapter is trained; set lora.rank", ["lora.rank=4"]),
    (["data.train=a.jsonl"], "data.train_split=dev", f"data.train {NO_SPLITS}", ["data.train=a/b"]),
    (["data.test=a.parquet"], "data.test_split=dev", f"data.test {NO_SPLITS}", ["data.test=dir"]),
    (
        FILE, "data.subset=main",
        "neither data.train nor data.test is a hub data set; leave it out", ["data.test=openai/gsm8k"],
    ),
]  # fmt: skip


def toml(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def parsed(*settings: str) -> Config:
    return parse_config({"model": {"scratch": "tiny"}}, settings, "test")


@pytest.mark.parametrize(("cause", "setting", "reason", "mended"), TABLE, ids=lambda value: str(value))
def test_a_setting_that_does_nothing_is_refused(
    cause: list[str], setting: str, reason: str, mended: list[str]
) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(UserError) as caught:
        parsed(*cause, setting)
    assert str(caught.value) == f"--set: {key} has no effect: {reason}"
    parsed(*cause)  # it is the setting that is refused, not what takes its effect
    parsed(*cause, setting, *mended)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ppo.advantage=group"], "set ppo.samples_per_question to 2 or more"),
        (["ppo.value_pretraining_steps=5", "ppo.steps=5"], "set it below ppo.steps = 5"),
        (["ppo.dual_clip=0.9"], "ppo.dual_clip = 0.9 would bound even a ratio of 1; set it above 1"),
        (["ppo.advantage=maxrl"], '"maxrl" compares the samples of a question, and with one of each'),
        (["ppo.advantage=gea"], "choose gae or group or rloo or reinforce++ or maxrl"),
        (["ppo.dynamic_sampling=3"], "and some wrong; set ppo.samples_per_question to 2 or more"),
        (
            ["ppo.difficulty_range=[0.2, 0.8]"],
            "tells nothing; set ppo.samples_per_question to 2 or more",
        ),
        (
            ["ppo.samples_per_question=2", "ppo.difficulty_range=[0.8, 0.2]"],
            "ppo.difficulty_range = [0.8, 0.2] is no range; give two success rates",
        ),
        (["ppo.samples_per_question=2", "ppo.difficulty_range=[0.2]"], "[0.2] is no range"),
        (
            ["ppo.overlong_buffer=9", "prompt.max_new_tokens=8"],
            "ppo.overlong_buffer = 9 is longer than a response can be; set it to"
            " prompt.max_new_tokens = 8 or less",
        ),
        (
            ["lora.rank=4", "ppo.reference_reset_steps=5"],
            "ppo.reference_reset_steps: with LoRA the reference is the model without its adapter",
        ),
        (
            ["ppo.samples_per_question=1", 'ppo.value_features=["surprise", "group"]'],
            "set ppo.samples_per_question to 2 or more",
        ),
        (
            ["ppo.samples_per_question=2", 'ppo.value_features=["group", "group"]'],
            "ppo.value_features names one twice",
        ),
        (["model.value_targets=two_hot", "model.value_span=[1.0, 1.0]"], "model.value_span is from"),
        (["evaluation.rerank=true"], "set evaluation.samples to 2 or more"),
        (["evaluation.rerank=true", "evaluation.samples=1"], "set evaluation.samples to 2 or more"),
        (["prompt.template=Question:"], "prompt.template must hold {question}"),
        (
            ["prompt.answer_style=boxed"],  # chains are programs by default
            'prompt.answer_style: "boxed" is no answer style of program chains; choose "function" or'
            ' "fenced", or the other kind of chain (data.cot)',
        ),
        (
            ["prompt.answer_style=fenced", "data.cot=natural"],
            '"fenced" is no answer style of natural chains; choose "trigger" or "boxed" or "hashes" or',
        ),
        (["prompt.template_args.tokenize=false"], "prompt.template_args: tokenize is set by reftune"),
        (['methods=["reft", "offline"]'], 'unknown method "offline"; choose among offline_st, '),
    ],
)
def test_what_cannot_work_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=r"^--set: ") as caught:
        parsed(*settings)
    assert message in str(caught.value)


def test_an_unknown_value_feature_is_refused_with_those_there_are() -> None:
    known = "ppo.value_features.0: input should be 'group', 'surprise' or 'success_rate', not 'length'"
    with pytest.raises(UserError, match=f"{known}$"):
        parsed('ppo.value_features=["length"]')


def test_two_hot_beside_features_needs_a_span_on_both_sides_of_0() -> None:
    both = ["model.value_targets=two_hot", 'ppo.value_features=["surprise"]']
    with pytest.raises(UserError, match=r"set model.value_span = \[-1.0, 1.0\]$"):
        parsed(*both)
    assert parsed(*both, "model.value_span=[-0.5, 1.0]").model.value_span == [-0.5, 1.0]
    assert parsed("ppo.samples_per_question=1", both[1]).ppo.value_features == ["surprise"]


def test_two_hot_beside_a_price_for_length_needs_one_too() -> None:
    both = ["model.value_targets=two_hot", "ppo.overlong_buffer=20"]
    with pytest.raises(UserError, match=r"overlong_buffer makes returns negative; set model.value_span"):
        parsed(*both)
    assert parsed(*both, "model.value_span=[-1.0, 1.0]").ppo.overlong_buffer == 20


@pytest.mark.parametrize(
    ("loss", "told", "given"),
    [
        ("gspo", "set ppo.clip_range = 3e-4 and ppo.clip_range_high = 4e-4", "ppo.clip_range=3e-4"),
        ("cispo", "set ppo.clip_range_high = 4", "ppo.clip_range_high=4"),
    ],
)
def test_what_bounds_another_thing_than_a_ratio_wants_a_range_of_its_own(
    loss: str, told: str, given: str
) -> None:
    with pytest.raises(
        UserError, match=f'"{loss}" needs another range than ppo.clip_range = 0.2; {told}'
    ):
        parsed(f"ppo.policy_loss={loss}")
    assert parsed(f"ppo.policy_loss={loss}", given).ppo.policy_loss == loss
    assert parsed(f"ppo.policy_loss={loss}", "ppo.ppo_epochs=1").ppo.updates == 1  # nothing is clipped


def test_what_is_switched_off_may_be_said() -> None:
    off = ["ppo.whiten=false", "ppo.value_coef=0", "ppo.value_pretraining_steps=0"]
    assert parsed(*GROUPED, *off).ppo.advantage == "group"


def test_a_child_takes_the_effect_of_what_it_inherits(tmp_path: Path) -> None:
    toml(
        tmp_path,
        f'{ALL}\n[model]\nscratch = "tiny"\n[offline_st]\nepochs = 3\n[ppo]\ngae_lambda = 1.0\n'
        "[evaluation]\nsamples = 2\ntemperature = 0.5\n",
        "base.toml",
    )
    text = 'extends = "base.toml"\nmethods = ["reft"]\n[evaluation]\nsamples = 0\n'
    assert load_config(toml(tmp_path, text)).offline_st.epochs == 3
    assert load_config(toml(tmp_path, text), GROUPED).ppo.advantage == "group"


def test_what_comes_with_or_after_the_cause_is_refused_with_its_place(tmp_path: Path) -> None:
    base = toml(tmp_path, 'methods = ["reft"]\n[model]\nscratch = "tiny"\n', "base.toml")
    child = toml(tmp_path, 'extends = "base.toml"\n[offline_st]\nkeep = 3\n[ppo]\nsteps = 5\n')
    leaf = toml(tmp_path, 'extends = "run.toml"\nseed = 1\n', "leaf.toml")
    for path in (child, leaf):
        with pytest.raises(UserError, match=f"^{child}: offline_st.keep has no effect: "):
            load_config(path)
    with pytest.raises(UserError, match=r"^--set: offline_st.epochs has no effect: "):
        load_config(base, ["offline_st.epochs=3"])
    with pytest.raises(UserError, match=f"^{child}: unknown key ppo.stepz; did you mean steps?"):
        load_config(toml(tmp_path, 'extends = "base.toml"\n[ppo]\nstepz = 5\n'))
    with pytest.raises(UserError, match=r"^--set: ppo.steps: input should be a valid integer"):
        load_config(base, ["ppo.steps=few"])


def test_the_record_of_a_run_is_read_back_though_it_says_everything(tmp_path: Path) -> None:
    config = load_config(toml(tmp_path, '[model]\nscratch = "tiny"\n'), GROUPED)
    record = toml(tmp_path, dump_config(config), "config.toml")
    assert "gae_lambda = 0.95" in record.read_text(encoding="utf-8")
    assert load_config(record) == config
    child = toml(tmp_path, 'extends = "config.toml"\nname = "again"\n', "child.toml")
    assert load_config(child).offline_st.epochs == 20
    with pytest.raises(UserError, match=r"^--set: ppo.gae_lambda has no effect"):
        load_config(record, ["ppo.gae_lambda=0.9"])


def test_files_without_splits_are_those_that_can_be_read() -> None:
    assert set(FILES) == {*JSON, *CSV, *PARQUET, *ARROW}
