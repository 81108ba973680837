"""The run configuration: sections of settings checked by pydantic, every key with a default."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from reftune.config.data import GYM, GYM_REWARD, Columns, Data, Prompt, Synthetic
from reftune.config.evaluation import Evaluation, Reward
from reftune.config.model import Lora, Model
from reftune.config.ppo import OWN_RANGES, Ppo
from reftune.config.ranges import Count, Place, Section, Seed, Threads
from reftune.config.training import (
    Epochs,
    OfflineSt,
    OnlineSt,
    Reranker,
    Sft,
    Steps,
    Supervised,
    WarmupSamples,
)
from reftune.methods import OPTIONAL, Lineup
from reftune.problem import misfit

__all__ = [
    "Columns",
    "Compute",
    "Config",
    "Data",
    "Epochs",
    "Evaluation",
    "Lora",
    "Model",
    "OfflineSt",
    "OnlineSt",
    "Ppo",
    "Prompt",
    "Reranker",
    "Reward",
    "Sft",
    "Steps",
    "Supervised",
    "Synthetic",
    "WarmupSamples",
]


MOST_ROWS = 512  # of the sampler, where the settings name no number


class Compute(Section):
    """Means and budgets of this machine.

    None of them changes a result beyond rounding, but for `sampler`: another engine draws others.
    """

    tokens_per_microbatch: Count | None = Field(
        None,
        description="padded tokens that are read at once; default: what fits, up to 4096 (a GPU: 16384)",
    )
    sampler: Literal["builtin", "vllm"] = Field(
        "builtin", description="engine that draws samples; vllm needs it installed, or vllm_server"
    )
    sampler_rows: Count | None = Field(
        None,
        description="responses decoded at once; default: what fits, up to 512; max_num_seqs in vLLM",
    )
    vllm_server: str | None = Field(
        None,
        description="address of a `reftune serve`, such as gpu2:8300; default: in this process",
    )
    vllm_gpu_memory: float = Field(
        0.4, gt=0, lt=1, description="share of a GPU that vLLM in this process takes while it samples"
    )
    gradient_checkpointing: bool = Field(
        False, description="keep the inputs of layers alone; slower by a third, for far less memory"
    )
    offload_reference: bool = Field(
        False, description="PPO's reference rests in the CPU's memory while it reads nothing"
    )
    sharding: Literal["none", "fsdp2"] = Field(
        "none",
        description="fsdp2: of several processes each keeps a part of every weight, gradient and moment",
    )
    threads: Threads | None = Field(None, description="CPU threads per process; default: all cores")
    sandbox_workers: Threads | None = Field(None, description="default: one per core")
    checkpoint_every_minutes: float = Field(
        10.0, ge=0, le=10**5, description="beside checkpoint_every_steps; 0: by steps alone"
    )
    checkpoints_kept: Count = Field(
        2, description="of the stage at work; an older one serves if need be"
    )
    trackers: list[str] = Field([], description="accelerate's: tensorboard, wandb, trackio, mlflow")
    tracker_project: str = Field("reftune", description="under which name trackers keep runs")
    tracker_group: str | None = Field(
        None, description="what a tracker shows together, such as the seeds of a recipe (wandb, trackio)"
    )

    @property
    def rows(self) -> int:
        """Return how many responses are decoded at once."""
        return self.sampler_rows or MOST_ROWS


class Config(Section):
    """Everything a run depends on."""

    name: str = Field("run", description="directory of the run; default: the name of the file")
    output_dir: Place = Field("runs", description="where the directories of runs go")
    seed: Seed = Field(42, description="of all that is random")
    methods: list[str] = Field(
        ["reft"], description=f"what is compared with SFT, or Base: {', '.join(OPTIONAL)}"
    )
    start_from: Place | None = Field(
        None, description="run directory whose SFT stage and warm-up samples this run takes over"
    )
    data: Data = Data()
    prompt: Prompt = Prompt()
    model: Model
    lora: Lora = Lora()
    reward: Reward = Reward()
    sft: Sft = Sft()
    warmup_samples: WarmupSamples = WarmupSamples()
    offline_st: OfflineSt = OfflineSt()
    online_st: OnlineSt = OnlineSt()
    ppo: Ppo = Ppo()
    reranker: Reranker = Reranker()
    evaluation: Evaluation = Evaluation()
    compute: Compute = Compute()

    @model_validator(mode="before")
    @classmethod
    def _families_bring_their_verifier(cls, given: Any) -> Any:
        """Let reasoning_gym's verifiers be the reward of its problems, where there is no other."""
        if not isinstance(given, dict):
            return given
        data, reward = (_values(given.get(name, {})) for name in ("data", "reward"))
        if reward is None or data is None or reward.get("function"):
            return given
        named = [data.get("train"), data.get("test")]
        named += [*(data.get("mixture") or ()), *(data.get("test_sources") or ())]
        if not any(str(source).startswith(GYM) for source in named):
            return given
        return {**given, "reward": {**reward, "function": GYM_REWARD}}

    @field_validator("compute")
    @classmethod
    def _server_draws(cls, compute: Compute) -> Compute:
        if compute.vllm_server is not None and compute.sampler != "vllm":
            raise ValueError(
                'compute.vllm_server does nothing: set compute.sampler = "vllm", or leave it out'
            )
        return compute

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

    @model_validator(mode="after")
    def _there_is_a_start(self) -> Config:
        if self.model.scratch is not None and not self.sft.warmup_epochs:
            key = "warmup_epochs" if self.sft.epochs else "epochs"
            raise ValueError(
                f"sft.{key} = 0: the methods would start from a new model (model.scratch), which knows"
                " nothing that could be reinforced; set model.name, or raise it"
            )
        if not self.sft.epochs and self.start_from is not None:
            raise ValueError(
                "start_from takes over the SFT stage of another run, and with sft.epochs = 0 there is"
                " none; leave start_from out, or raise sft.epochs"
            )
        if not self.sft.epochs and not self.methods:
            raise ValueError(
                'methods = [] and sft.epochs = 0: nothing is trained; add "reft" to methods, or raise'
                " sft.epochs"
            )
        return self

    @field_validator("ppo")
    @classmethod
    def _ppo_fits_the_rest(cls, ppo: Ppo, others: Any) -> Ppo:
        prompt, lora = others.data.get("prompt"), others.data.get("lora")
        if prompt is not None and ppo.overlong_buffer > prompt.max_new_tokens:
            raise ValueError(
                f"ppo.overlong_buffer = {ppo.overlong_buffer} is longer than a response can be; set it"
                f" to prompt.max_new_tokens = {prompt.max_new_tokens} or less"
            )
        given = {"clip_range", "clip_range_high"} & ppo.model_fields_set
        if ppo.policy_loss in OWN_RANGES and not given and ppo.updates > 1:
            raise ValueError(
                f'ppo.policy_loss = "{ppo.policy_loss}" needs another range than ppo.clip_range ='
                f" {ppo.clip_range}; set {OWN_RANGES[ppo.policy_loss]}"
            )
        if lora is not None and lora.rank and ppo.reference_reset_steps:
            raise ValueError(
                "ppo.reference_reset_steps: with LoRA the reference is the model without its adapter,"
                " which cannot move; leave it out, or lora.rank"
            )
        return ppo

    @model_validator(mode="after")
    def _classes_span_the_returns(self) -> Config:
        ppo, classes = self.ppo, self.model.value_targets == "two_hot"
        below = (
            "what ppo.value_features leave over of a return is often" if ppo.value_features
            else "ppo.overlong_buffer makes returns" if ppo.overlong_buffer
            else ""
        )  # fmt: skip
        if classes and below and self.model.value_span[0] >= 0:
            raise ValueError(
                f"model.value_span begins at 0 or above, and {below} negative; set model.value_span ="
                " [-1.0, 1.0]"
            )
        return self

    @field_validator("compute")
    @classmethod
    def _can_be_cut(cls, compute: Compute, others: Any) -> Compute:
        model = others.data.get("model")
        if compute.sharding == "none" or model is None:
            return compute
        if model.dtype == "float16":
            raise ValueError(
                f'compute.sharding = "{compute.sharding}" goes not with model.dtype = "float16", whose'
                ' loss is scaled; set model.dtype = "bfloat16"'
            )
        if model.optimizer == "adamw_8bit":
            raise ValueError(
                f'compute.sharding = "{compute.sharding}" goes not with model.optimizer = "adamw_8bit",'
                " which knows no parts of weights; leave one of them out"
            )
        return compute

    @field_validator("prompt")
    @classmethod
    def _answers_fit_the_chains(cls, prompt: Prompt, others: Any) -> Prompt:
        style, data = prompt.answer_style, others.data.get("data")
        if style != "auto" and data is not None and (wrong := misfit(style, data.cot)):
            raise ValueError(f"prompt.answer_style: {wrong} (data.cot)")
        return prompt

    @property
    def lineup(self) -> Lineup:
        """Return what the run makes and compares, and what it starts from."""
        return Lineup(
            methods=self.methods,
            rerank=self.evaluation.rerank,
            base=self.evaluation.base and self.model.name is not None,
            epochs=self.sft.epochs,
            warmup_epochs=self.sft.warmup_epochs,
        )

    @property
    def run_dir(self) -> Path:
        """Return the directory in which everything of this run lies."""
        return Path(self.output_dir) / self.name


def _values(section: Any) -> dict[str, Any] | None:
    """Return what a section is given, as a table or made already; None for what is none."""
    if isinstance(section, Section):
        return section.model_dump(exclude_unset=True)
    return section if isinstance(section, dict) else None
