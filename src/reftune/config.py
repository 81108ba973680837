"""The run configuration: sections of settings checked by pydantic, every key with a default."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from reftune.config_ranges import (
    Amount,
    Count,
    Few,
    Limit,
    Place,
    Rate,
    Seed,
    Temperature,
    Threads,
    Weight,
)
from reftune.methods import OPTIONAL
from reftune.problem import Cot


class Section(BaseModel):
    """A table of the file; a key that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Synthetic(Section):
    """The built-in problem generator (used where a data source is "synthetic")."""

    min_events: int = Field(2, ge=0, le=1000, description="fewest changes in a story")
    max_events: int = Field(4, ge=0, le=1000, description="most changes in a story")
    people: int = Field(3, ge=2, le=1000, description="most people in a story")
    max_number: int = Field(20, ge=4, le=10**9, description="largest starting amount")
    distractors: float = Field(0.3, ge=0, le=1, description="share of stories with an irrelevant fact")
    choices: int = Field(0, ge=0, le=5, description="2 to 5 options per question; 0: a number is asked")
    train_size: Count = Field(1700, description="problems to train on, validation included")
    test_size: Count = Field(1000, description="problems to test on")
    seed: Seed | None = Field(None, description="draws the problems; default: the run's seed")


class Columns(Section):
    """Names of the columns in a data set that is not in one of the known formats."""

    id: str | None = None
    question: str = "question"
    answer: str = "answer"
    chain: str | None = None
    choices: str | None = None


class Data(Section):
    """Where the problems come from."""

    train: Place = Field("synthetic", description='a file, a Hugging Face data set name, or "synthetic"')
    test: Place = Field("synthetic", description="likewise; touched once, for the final evaluation")
    cot: Cot = Field("program", description="kind of chain: program (executed) or natural (text)")
    validation_size: Count = Field(200, description="questions carved from train by a seeded hash")
    train_split: str = "train"
    test_split: str = "test"
    subset: str | None = Field(None, description="configuration name of the hub data set")
    columns: Columns | None = Field(None, description="column names, where the format is unknown")
    max_train: Count | None = Field(None, description="use only this many training problems")
    max_test: Count | None = Field(None, description="use only this many test problems")
    synthetic: Synthetic = Synthetic()


class Prompt(Section):
    """How a question becomes text; the defaults are the paper's exact strings."""

    template: str = "Question:\n{question}\nAnswer reasoning:\n"
    trigger: str = Field("\nTherefore, the answer is: ", description="text before the answer (natural)")
    repeat_question: bool = Field(True, description="programs carry the question as their docstring")
    max_prompt_tokens: Count = 300
    max_new_tokens: Count = 400

    @field_validator("template")
    @classmethod
    def _asks_the_question(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("prompt.template must hold {question}, or all prompts are the same")
        return template


class Model(Section):
    """Which language model to start from."""

    name: Place | None = Field(None, description="Hugging Face name or directory")
    scratch: str | None = Field(None, description="size of a new small Llama: tiny or small")
    scratch_overrides: dict[str, Few] = Field({}, description="LlamaConfig fields, e.g. hidden_size")
    vocab_size: int = Field(512, ge=260, le=10**6, description="of a scratch model's tokenizer")
    eos_token: str | None = Field(
        None, description='what ends a text, e.g. "</s>"; default: what the tokenizer of `name` says'
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="precision of computing and of exported models; weights train in float32"
    )
    value_model: Literal["shared", "separate"] = Field(
        "shared", description="critic on the policy's own backbone, or a model of its own"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.name is None) == (self.scratch is None):
            raise ValueError('set exactly one of model.name and model.scratch ("tiny" or "small")')
        return self


class Epochs(Section):
    """Training on given examples, several times over."""

    epochs: Count = Field(40, description="length of the run; its best epoch is the model")
    batch_size: Count = 48
    max_tokens: int = Field(1024, ge=2, le=10**7, description="longer examples are left out")
    learning_rate: Rate = 1e-5
    lr_warmup_share: float = Field(0.1, ge=0, le=1, description="share of the steps with a rising rate")
    weight_decay: Weight = 0.0
    max_grad_norm: Limit = 1.0
    checkpoint_every_steps: Count = 200


class Supervised(Epochs):
    """Training on chains; the best epoch is the one that answers most validation questions."""

    validate_every_epochs: Count = 1


class Sft(Supervised):
    """Supervised warm-up, and the SFT baseline: one run, two checkpoints."""

    warmup_epochs: Count = Field(2, description="the other methods start from this epoch's model")

    @model_validator(mode="after")
    def _warmup_within(self) -> Sft:
        if self.warmup_epochs > self.epochs:
            raise ValueError("sft.warmup_epochs must not exceed sft.epochs")
        return self


class WarmupSamples(Section):
    """Samples of the warm-up model, from which offline self-training and rerankers learn."""

    per_question: Few = 100
    temperature: Temperature = 1.0


class OfflineSt(Supervised):
    """Offline self-training: SFT anew on the annotated chains and the warm-up's right samples."""

    epochs: Count = Field(20, description="length of the run; its best epoch is the model")
    keep: Few = Field(10, description="different right samples per question, at most")


class Steps(Section):
    """Training on samples of the current policy, batch by batch."""

    steps: Count = Field(1000, description="batches of samples")
    questions_per_step: Count = 32
    samples_per_question: Few = Field(1, description="num_generations in TRL")
    learning_rate: Rate = 3e-7
    weight_decay: Weight = 0.0
    max_grad_norm: Limit = 1.0
    temperature: Temperature = 1.0
    validate_every_steps: Count = 10
    checkpoint_every_steps: Count = 10
    samples_logged_per_step: Amount = 8


class OnlineSt(Steps):
    """Online self-training: SFT on the policy's own right samples and the annotated chains."""

    update_epochs: Few = Field(2, description="passes over each batch of samples")


class Reranker(Epochs):
    """A classifier of right and wrong chains on top of each model, to choose among its samples."""

    epochs: Count = Field(3, description="length of the run; the best epoch by validation is kept")
    batch_size: Count = 24
    learning_rate: Rate = 1e-6
    head_learning_rate: Rate | None = Field(None, description="default: learning_rate")


class Ppo(Steps):
    """Online PPO whose reward is the checked answer."""

    ppo_epochs: Few = Field(2, description="passes over each batch; num_ppo_epochs in TRL")
    minibatch_size: Count | None = Field(None, description="samples per optimizer step; default all")
    advantage: str = Field("gae", description="gae (with a critic) or group (baseline per question)")
    scale_rewards: bool = Field(False, description="group: divide by the question's standard deviation")
    value_head_learning_rate: Rate | None = Field(None, description="default: learning_rate")
    critic_warmup_steps: Amount = Field(0, description="first steps in which only the critic learns")
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    kl_coef: Weight = Field(0.01, description="beta of the per-token KL penalty in the reward")
    clip_range: Limit = Field(0.2, description="of the ratio; cliprange, or epsilon")
    value_clip_range: Limit = 0.2
    value_coef: Weight = Field(5.0, description="alpha, weight of the value loss; vf_coef in TRL")
    whiten: bool = Field(True, description="gae: normalise advantages over all tokens of the batch")
    importance_sampling_cap: Weight = Field(
        2.0, description="cap of the trainer's over the sampler's probability; 0: no correction"
    )

    @model_validator(mode="after")
    def _the_policy_can_learn(self) -> Ppo:
        if self.advantage == "group" and self.samples_per_question == 1:
            raise ValueError(
                'ppo.advantage = "group" compares the samples of a question, and with one of each every'
                " advantage is 0; set ppo.samples_per_question to 2 or more"
            )
        if self.critic_warmup_steps >= self.steps:
            raise ValueError(
                f"ppo.critic_warmup_steps = {self.critic_warmup_steps} leaves the policy no step to"
                f" learn in; set it below ppo.steps = {self.steps}"
            )
        return self


class Reward(Section):
    """What a completion is worth, in sampling stages and the evaluation; what a program may use."""

    function: Place | None = Field(None, description="your own reward: path.py:function")
    partial_reward: float = Field(
        0.1, ge=0, le=1, description="reward of a wrong but well-formed answer"
    )
    sandbox_seconds: float = Field(2.0, gt=0, le=3600, description="CPU time that a program may use")
    sandbox_memory_mb: int = Field(256, ge=16, le=2**20, description="heap that a program may use")


class Evaluation(Section):
    """How the models are compared on the test questions."""

    samples: int = Field(0, ge=0, le=10**4, description="per question, to vote; 0: greedy only")
    temperature: Temperature = 1.0
    rerank: bool = Field(False, description="train a reranker per model and choose samples by its score")
    bootstrap: int = Field(10000, ge=100, le=10**6, description="resamples behind an interval")

    @model_validator(mode="after")
    def _something_to_rank(self) -> Evaluation:
        if self.rerank and self.samples < 2:
            raise ValueError(
                "evaluation.rerank needs samples to choose from; set evaluation.samples to 2 or more"
            )
        return self


class Compute(Section):
    """Budgets of this machine; none of them changes a result beyond rounding."""

    tokens_per_microbatch: Count = 4096
    sampler_rows: Count = Field(512, description="responses decoded at once; max_num_seqs in vLLM")
    threads: Threads | None = Field(None, description="CPU threads per process; default: all cores")
    sandbox_workers: Threads | None = Field(None, description="default: one per core")
    trackers: list[str] = Field([], description="accelerate's: tensorboard, wandb, trackio, mlflow")


class Config(Section):
    """Everything a run depends on."""

    name: str = "run"
    output_dir: Place = "runs"
    seed: Seed = 42
    methods: list[str] = Field(["reft"], description=f"what is compared with SFT: {', '.join(OPTIONAL)}")
    start_from: Place | None = Field(
        None, description="run directory whose SFT stage and warm-up samples this run takes over"
    )
    data: Data = Data()
    prompt: Prompt = Prompt()
    model: Model
    reward: Reward = Reward()
    sft: Sft = Sft()
    warmup_samples: WarmupSamples = WarmupSamples()
    offline_st: OfflineSt = OfflineSt()
    online_st: OnlineSt = OnlineSt()
    ppo: Ppo = Ppo()
    reranker: Reranker = Reranker()
    evaluation: Evaluation = Evaluation()
    compute: Compute = Compute()

    @field_validator("name")
    @classmethod
    def _lies_inside(cls, name: str) -> str:
        parts = PurePath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name:
            raise ValueError(f"name: {name!r} is no directory inside of output_dir; choose another name")
        return name

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: list[str]) -> list[str]:
        for name in methods:
            if name not in OPTIONAL:
                raise ValueError(f'methods: unknown method "{name}"; choose among {", ".join(OPTIONAL)}')
        return methods

    @property
    def run_dir(self) -> Path:
        """Return the directory in which everything of this run lies."""
        return Path(self.output_dir) / self.name
