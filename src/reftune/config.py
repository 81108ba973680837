"""The run configuration: sections of settings checked by pydantic, every key with a default."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from reftune.methods import OPTIONAL
from reftune.problem import Cot


class Section(BaseModel):
    """A table of the file; a key that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Synthetic(Section):
    """The built-in problem generator (used where a data source is "synthetic")."""

    min_events: int = Field(2, ge=0, description="fewest changes in a story")
    max_events: int = Field(4, ge=0, description="most changes in a story")
    people: int = Field(3, ge=2, description="most people in a story")
    max_number: int = Field(20, ge=4, description="largest starting amount")
    distractors: float = Field(0.3, ge=0, le=1, description="share of stories with an irrelevant fact")
    choices: int = Field(0, ge=0, le=5, description="2 to 5 options per question; 0: a number is asked")
    train_size: int = Field(1700, ge=1, description="problems to train on, validation included")
    test_size: int = Field(1000, ge=1, description="problems to test on")
    seed: int | None = Field(None, description="draws the problems; default: the run's seed")


class Columns(Section):
    """Names of the columns in a data set that is not in one of the known formats."""

    id: str | None = None
    question: str = "question"
    answer: str = "answer"
    chain: str | None = None
    choices: str | None = None


class Data(Section):
    """Where the problems come from."""

    train: str = Field("synthetic", description='a file, a Hugging Face data set name, or "synthetic"')
    test: str = Field("synthetic", description="likewise; touched once, for the final evaluation")
    cot: Cot = Field("program", description="kind of chain: program (executed) or natural (text)")
    validation_size: int = Field(200, ge=1, description="questions carved from train by a seeded hash")
    train_split: str = "train"
    test_split: str = "test"
    subset: str | None = Field(None, description="configuration name of the hub data set")
    columns: Columns | None = Field(None, description="column names, where the format is unknown")
    max_train: int | None = Field(None, ge=1, description="use only this many training problems")
    max_test: int | None = Field(None, ge=1, description="use only this many test problems")
    synthetic: Synthetic = Synthetic()


class Prompt(Section):
    """How a question becomes text; the defaults are the paper's exact strings."""

    template: str = "Question:\n{question}\nAnswer reasoning:\n"
    trigger: str = Field("\nTherefore, the answer is: ", description="text before the answer (natural)")
    repeat_question: bool = Field(True, description="programs carry the question as their docstring")
    max_prompt_tokens: int = Field(300, ge=1)
    max_new_tokens: int = Field(400, ge=1)

    @field_validator("template")
    @classmethod
    def _asks_the_question(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("prompt.template must hold {question}, or all prompts are the same")
        return template


class Model(Section):
    """Which language model to start from."""

    name: str | None = Field(None, description="Hugging Face name or directory")
    scratch: str | None = Field(None, description="size of a new small Llama: tiny or small")
    scratch_overrides: dict[str, int] = Field({}, description="LlamaConfig fields, e.g. hidden_size")
    vocab_size: int = Field(512, ge=260, description="vocabulary of a scratch model's tokenizer")
    dtype: Literal["float32", "bfloat16"] = Field(
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

    epochs: int = Field(40, ge=1, description="length of the run; its best epoch is the model")
    batch_size: int = Field(48, ge=1)
    max_tokens: int = Field(1024, ge=2, description="leave out longer examples (prompt and response)")
    learning_rate: float = Field(1e-5, gt=0)
    lr_warmup_share: float = Field(0.1, ge=0, le=1, description="share of the steps with a rising rate")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    checkpoint_every_steps: int = Field(200, ge=1)


class Supervised(Epochs):
    """Training on chains; the best epoch is the one that answers most validation questions."""

    validate_every_epochs: int = Field(1, ge=1)


class Sft(Supervised):
    """Supervised warm-up, and the SFT baseline: one run, two checkpoints."""

    warmup_epochs: int = Field(2, ge=1, description="the other methods start from this epoch's model")

    @model_validator(mode="after")
    def _warmup_within(self) -> Sft:
        if self.warmup_epochs > self.epochs:
            raise ValueError("sft.warmup_epochs must not exceed sft.epochs")
        return self


class WarmupSamples(Section):
    """Samples of the warm-up model, from which offline self-training and rerankers learn."""

    per_question: int = Field(100, ge=1)
    temperature: float = Field(1.0, gt=0)


class OfflineSt(Supervised):
    """Offline self-training: SFT anew on the annotated chains and the warm-up's right samples."""

    epochs: int = Field(20, ge=1, description="length of the run; its best epoch is the model")
    keep: int = Field(10, ge=1, description="different right samples per question, at most")


class Steps(Section):
    """Training on samples of the current policy, batch by batch."""

    steps: int = Field(1000, ge=1, description="batches of samples")
    questions_per_step: int = Field(32, ge=1)
    samples_per_question: int = Field(1, ge=1, description="num_generations in TRL")
    learning_rate: float = Field(3e-7, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    temperature: float = Field(1.0, gt=0)
    validate_every_steps: int = Field(10, ge=1)
    checkpoint_every_steps: int = Field(10, ge=1)
    samples_logged_per_step: int = Field(8, ge=0)


class OnlineSt(Steps):
    """Online self-training: SFT on the policy's own right samples and the annotated chains."""

    update_epochs: int = Field(2, ge=1, description="passes over each batch of samples")


class Reranker(Epochs):
    """A classifier of right and wrong chains on top of each model, to choose among its samples."""

    epochs: int = Field(3, ge=1, description="length of the run; the best epoch by validation is kept")
    batch_size: int = Field(24, ge=1)
    learning_rate: float = Field(1e-6, gt=0)
    head_learning_rate: float | None = Field(None, gt=0, description="default: learning_rate")


class Ppo(Steps):
    """Online PPO whose reward is the checked answer."""

    ppo_epochs: int = Field(2, ge=1, description="passes over each batch; num_ppo_epochs in TRL")
    minibatch_size: int | None = Field(None, ge=1, description="samples per optimizer step; default all")
    advantage: str = Field("gae", description="gae (with a critic) or group (baseline per question)")
    scale_rewards: bool = Field(False, description="group: divide by the question's standard deviation")
    value_head_learning_rate: float | None = Field(None, gt=0, description="default: learning_rate")
    critic_warmup_steps: int = Field(0, ge=0, description="first steps in which only the critic learns")
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    kl_coef: float = Field(0.01, ge=0, description="beta of the per-token KL penalty in the reward")
    clip_range: float = Field(0.2, gt=0, description="of the ratio; cliprange, or epsilon")
    value_clip_range: float = Field(0.2, gt=0)
    value_coef: float = Field(5.0, ge=0, description="alpha, weight of the value loss; vf_coef in TRL")
    whiten: bool = Field(True, description="gae: normalise advantages over all tokens of the batch")
    importance_sampling_cap: float = Field(
        2.0, ge=0, description="cap of the trainer's over the sampler's probability; 0: no correction"
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

    function: str | None = Field(None, description="your own reward: path.py:function")
    partial_reward: float = Field(
        0.1, ge=0, le=1, description="reward of a wrong but well-formed answer"
    )
    sandbox_seconds: float = Field(2.0, gt=0, description="CPU time that a program may use")
    sandbox_memory_mb: int = Field(256, ge=16, description="heap that a program may use")


class Evaluation(Section):
    """How the models are compared on the test questions."""

    samples: int = Field(0, ge=0, description="per question, for voting and pass@k; 0: greedy only")
    temperature: float = Field(1.0, gt=0)
    rerank: bool = Field(False, description="train a reranker per model and choose samples by its score")
    bootstrap: int = Field(10000, ge=100, description="resamples behind the interval of a difference")

    @model_validator(mode="after")
    def _something_to_rank(self) -> Evaluation:
        if self.rerank and self.samples < 2:
            raise ValueError(
                "evaluation.rerank needs samples to choose from; set evaluation.samples to 2 or more"
            )
        return self


class Compute(Section):
    """Budgets of this machine; none of them changes a result beyond rounding."""

    tokens_per_microbatch: int = Field(4096, ge=1)
    sampler_rows: int = Field(512, ge=1, description="responses decoded at once; max_num_seqs in vLLM")
    threads: int | None = Field(None, ge=1, description="CPU threads per process; default: all cores")
    sandbox_workers: int | None = Field(None, ge=1, description="default: one per core")
    trackers: list[str] = Field([], description="accelerate's: tensorboard, wandb, trackio, mlflow")


class Config(Section):
    """Everything a run depends on."""

    name: str = "run"
    output_dir: str = "runs"
    seed: int = 42
    methods: list[str] = Field(["reft"], description=f"what is compared with SFT: {', '.join(OPTIONAL)}")
    start_from: str | None = Field(
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
