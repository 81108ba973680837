"""Settings that would do nothing: each is refused where it is given, with the key to change.

Only what a file or --set says is judged, never a default, nor what is switched off (false, 0). A file
may take away the effect of what the files that it extends say: the fewer methods of an ablation leave
whole sections of its parent without one. `[compute]` is the machine's, and may serve many runs.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reftune.config import Config
from reftune.config.data import AUTO_ANSWERS
from reftune.config.ppo import KINDS

FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
_MISSING = object()


class Layer(NamedTuple):
    """What one place says; a place that is not `judged` has said what does nothing for a good reason."""

    source: str  # of error messages
    values: dict[str, Any]
    judged: bool = True


class Idle(NamedTuple):
    """Keys, or whole sections, that do nothing in some configurations."""

    keys: str
    when: Callable[[Config], bool]
    causes: str  # the keys that decide it
    reason: str  # with the way out


_HEAD = (
    "model.value_model model.value_hidden_size model.value_targets model.value_span"
    " ppo.value_clip_range ppo.value_head_learning_rate ppo.value_epochs ppo.value_lambda"
)
_CRITIC = f"{_HEAD} ppo.value_pretraining_steps ppo.value_features ppo.lambda_length_alpha"
_UPDATES = "ppo.ppo_epochs ppo.minibatch_size ppo.questions_per_step ppo.samples_per_question"
_TRAINED, _TESTED = "data.train data.mixture", "data.test data.test_sources"
_SOURCES = f"{_TRAINED} {_TESTED}"
_WITH_CRITIC = " or ".join(f'"{name}"' for name, kind in KINDS.items() if kind.critic)
_SCALABLE = " or ".join(f'"{name}"' for name, kind in KINDS.items() if kind.scalable)


def _estimates(name: str) -> Callable[[Config], bool]:
    return lambda c: c.ppo.advantage == name


IDLE = (
    Idle("sft", lambda c: not c.sft.epochs, "sft.epochs",
         "sft.epochs = 0 leaves the SFT stage out; leave the key out, too, or raise sft.epochs"),
    Idle("sft.warmup_k sft.warmup_gate", lambda c: c.sft.warmup_epochs != "auto", "sft.warmup_epochs",
         'the start is not chosen by samples; set sft.warmup_epochs = "auto"'),
    Idle("offline_st", lambda c: "offline_st" not in c.methods, "methods",
         'no offline self-training is run; add "offline_st" to methods'),
    Idle("online_st", lambda c: "online_st" not in c.methods, "methods",
         'no online self-training is run; add "online_st" to methods'),
    Idle("ppo model.value_model model.value_hidden_size model.value_targets",
         lambda c: "reft" not in c.methods, "methods",
         'no PPO is run; add "reft" to methods'),
    Idle("reranker", lambda c: not c.evaluation.rerank, "evaluation.rerank",
         "no reranker is trained; set evaluation.rerank = true"),
    Idle("warmup_samples", lambda c: not (c.evaluation.rerank or "offline_st" in c.methods),
         "evaluation.rerank methods", "nobody learns from warm-up samples;"
         ' add "offline_st" to methods, or set evaluation.rerank = true'),
    Idle("offline_st.keep", lambda c: c.offline_st.keep > c.warmup_samples.per_question,
         "warmup_samples.per_question",
         "no question has so many samples; lower it, or raise warmup_samples.per_question"),
    Idle("evaluation.base", lambda c: c.model.scratch is not None, "model.name model.scratch",
         "a new model knows no answers; leave it out, or set model.name"),
    Idle("evaluation.temperature", lambda c: not c.evaluation.samples, "evaluation.samples",
         "test questions are answered greedily; set evaluation.samples"),
    *(Idle(f"{_CRITIC} ppo.gae_lambda ppo.gamma ppo.value_coef ppo.whiten",
           _estimates(name), "ppo.advantage", f'ppo.advantage = "{name}" has no critic;'
           f" leave the key out, or set ppo.advantage = {_WITH_CRITIC}")
      for name, kind in KINDS.items() if not kind.critic),
    *(Idle("ppo.scale_rewards", _estimates(name), "ppo.advantage", f'ppo.advantage = "{name}" '
           f"{'has a scale of its own' if kind.compares else 'compares no groups'};"
           f" set ppo.advantage = {_SCALABLE}")
      for name, kind in KINDS.items() if not kind.scalable),
    Idle("ppo.difficulty_range", lambda c: c.ppo.difficulty_range == [0, 1], "ppo.difficulty_range",
         "no success rate is out of it; narrow it, for example to [0.2, 0.8]"),
    Idle("ppo.reference_reset_steps", lambda c: not c.ppo.kl_coef, "ppo.kl_coef",
         "with ppo.kl_coef = 0 there is no reference; raise ppo.kl_coef"),
    Idle("ppo.reference_reset_steps", lambda c: c.ppo.reference_reset_steps >= c.ppo.steps,
         "ppo.reference_reset_steps ppo.steps", "no step comes after it; set it below ppo.steps"),
    Idle(_HEAD, lambda c: c.ppo.value_coef == 0, "ppo.value_coef",
         "with ppo.value_coef = 0 the critic's head does not learn; raise ppo.value_coef"),
    Idle("ppo.value_pretraining_steps", lambda c: not (c.ppo.value_coef or c.ppo.value_features),
         "ppo.value_coef ppo.value_features",
         "the critic learns nothing; raise ppo.value_coef, or set ppo.value_features"),
    Idle("model.value_span", lambda c: c.model.value_targets != "two_hot", "model.value_targets",
         'only a classified value has one; set model.value_targets = "two_hot"'),
    Idle("ppo.gae_lambda", lambda c: c.ppo.lambda_length_alpha > 0, "ppo.lambda_length_alpha",
         "lambda goes by the length of a response; leave it out, or set ppo.lambda_length_alpha = 0"),
    Idle("ppo.minibatch_size", lambda c: (c.ppo.minibatch_size or 0) > c.ppo.samples_per_step, _UPDATES,
         "a batch has only ppo.questions_per_step x ppo.samples_per_question samples; lower it"),
    Idle("ppo.importance_sampling ppo.importance_sampling_min ppo.importance_sampling_max",
         lambda c: not c.ppo.importance_sampling_cap, "ppo.importance_sampling_cap",
         "with ppo.importance_sampling_cap = 0 nothing is corrected; raise it, or leave it out"),
    Idle("ppo.importance_sampling_cap", lambda c: c.ppo.importance_sampling.endswith("_mask"),
         "ppo.importance_sampling", "a mask has bounds; set ppo.importance_sampling_max"),
    Idle("ppo.importance_sampling_min ppo.importance_sampling_max",
         lambda c: not c.ppo.importance_sampling.endswith("_mask"), "ppo.importance_sampling",
         'weights are capped; set ppo.importance_sampling = "token_mask" or "sequence_mask"'),
    Idle("ppo.kl_penalty", lambda c: not c.ppo.kl_coef, "ppo.kl_coef",
         "with ppo.kl_coef = 0 there is no KL penalty; raise ppo.kl_coef"),
    Idle("ppo.clip_range ppo.clip_range_high", lambda c: c.ppo.policy_loss == "dppo_tv",
         "ppo.policy_loss", 'ppo.policy_loss = "dppo_tv" clips no ratio; set ppo.tv_range'),
    Idle("ppo.clip_range",
         lambda c: c.ppo.policy_loss == "cispo" and c.ppo.clip_range_high is not None,
         "ppo.policy_loss ppo.clip_range_high",
         'ppo.policy_loss = "cispo" bounds the ratio by ppo.clip_range_high alone; leave it out'),
    Idle("ppo.dual_clip", lambda c: c.ppo.policy_loss != "clip", "ppo.policy_loss",
         'only ppo.policy_loss = "clip" has that bound; leave one of them out'),
    Idle("ppo.tv_range", lambda c: c.ppo.policy_loss != "dppo_tv", "ppo.policy_loss",
         'no token drops out by it; set ppo.policy_loss = "dppo_tv"'),
    Idle("ppo.live_denominator", lambda c: c.ppo.advantage == "gae", "ppo.advantage",
         'ppo.advantage = "gae" learns from every sample; set ppo.advantage = "group"'),
    Idle("model.float32_head", lambda c: c.model.dtype == "float32", "model.dtype",
         'everything is in float32; leave it out, or set model.dtype = "bfloat16"'),
    Idle("ppo.value_clip_range", lambda c: c.model.value_targets == "two_hot", "model.value_targets",
         "a cross-entropy is not clipped; leave one of them out"),
    Idle("ppo.clip_range ppo.clip_range_high ppo.dual_clip", lambda c: c.ppo.updates == 1, _UPDATES,
         "a batch's only update starts at the policy that sampled it, with nothing to clip;"
         " raise ppo.ppo_epochs or lower ppo.minibatch_size"),
    Idle("ppo.value_clip_range", lambda c: c.ppo.updates == 1 and not c.ppo.value_epochs,
         f"{_UPDATES} ppo.value_epochs",
         "a batch's only update starts at the policy that sampled it, with nothing to clip;"
         " raise ppo.ppo_epochs or ppo.value_epochs, or lower ppo.minibatch_size"),
    Idle("reward.weights reward.seconds reward.max_failed data.keep_columns",
         lambda c: c.reward.function is None, "reward.function",
         "only your own reward goes by it; set reward.function"),
    Idle("reward.partial_reward", lambda c: not c.reward.grades_answers, "reward.function",
         "reward.function says what a wrong answer is worth; leave one of them out"),
    Idle("reward.partial_reward", lambda c: _generated(c) and c.data.synthetic.choices > 0,
         f"{_SOURCES} data.synthetic.choices",
         "a wrong letter never earns it; leave it out, or set data.synthetic.choices = 0"),
    Idle("reward.sandbox_seconds reward.sandbox_memory_mb reward.full_python",
         lambda c: c.data.cot == "natural", "data.cot",
         'only programs run in the sandbox; set data.cot = "program"'),
    Idle("data.synthetic.retold", lambda c: c.data.cot == "program", "data.cot",
         'a program works out, it says nothing again; set data.cot = "natural"'),
    Idle("prompt.trigger", lambda c: c.data.cot == "program", "data.cot",
         'a program returns its answer; set data.cot = "natural"'),
    Idle("prompt.repeat_question", lambda c: c.data.cot == "natural", "data.cot",
         'only programs can carry the question; set data.cot = "program"'),
    Idle("prompt.trigger", lambda c: c.data.cot == "natural" and _answers(c) not in ("trigger", "auto"),
         "prompt.answer_style prompt.style",
         'answers are written in another style; leave it out, or set prompt.answer_style = "trigger"'),
    Idle("prompt.repeat_question",
         lambda c: c.data.cot == "program" and _answers(c) not in ("function", "auto"),
         "prompt.answer_style prompt.style",
         'the program is written whole; leave it out, or set prompt.answer_style = "function"'),
    Idle("prompt.system prompt.template_args", lambda c: _style(c) == "plain",
         "prompt.style model.name model.scratch",
         'plain text has no chat template; leave it out, or set prompt.style = "chat"'),
    Idle("model.vocab_size model.scratch_overrides model.init_std", lambda c: c.model.name is not None,
         "model.name model.scratch",
         "model.name has a shape and a tokenizer of its own; leave it out, or set model.scratch"),
    Idle("model.eos_token", lambda c: c.model.scratch is not None, "model.name model.scratch",
         "a new model's texts end with <eos>; leave it out, or set model.name"),
    Idle("lora.alpha lora.dropout lora.targets", lambda c: not c.lora.rank, "lora.rank",
         "no adapter is trained; set lora.rank"),
    Idle("data.max_chains",
         lambda c: not c.sft.epochs and not {"offline_st", "online_st"} & {*c.methods},
         "sft.epochs methods", "nobody learns from chains; leave it out, or raise sft.epochs"),
    Idle("data.train", lambda c: bool(c.data.mixture), "data.mixture",
         "data.mixture says what is trained on; leave one of them out"),
    Idle("data.test", lambda c: bool(c.data.test_sources), "data.test_sources",
         "data.test_sources says what is tested on; leave one of them out"),
    Idle("data.synthetic",
         lambda c: "synthetic" not in (*c.data.trained_on, *c.data.tested_on), _SOURCES,
         'no problems are generated; set data.train or data.test to "synthetic"'),
    Idle("data.synthetic.train_size", lambda c: "synthetic" not in c.data.trained_on, _TRAINED,
         "data.train has its own problems; set data.max_train to use fewer"),
    Idle("data.synthetic.test_size", lambda c: "synthetic" not in c.data.tested_on, _TESTED,
         "data.test has its own problems; set data.max_test to use fewer"),
    Idle("data.columns", lambda c: _generated(c), _SOURCES,
         "generated problems have no columns; set data.train or data.test"),
    Idle("data.train_split", lambda c: not _have_splits(c.data.trained_on), _TRAINED,
         "data.train is no directory or hub data set, and has no splits; leave it out"),
    Idle("data.test_split", lambda c: not _have_splits(c.data.tested_on), _TESTED,
         "data.test is no directory or hub data set, and has no splits; leave it out"),
    Idle("data.subset", lambda c: not _have_splits([*c.data.trained_on, *c.data.tested_on]), _SOURCES,
         "neither data.train nor data.test is a hub data set; leave it out"),
)  # fmt: skip


def idle_settings(config: Config, layers: Sequence[Layer]) -> list[str]:
    """Return a sentence on each setting that does nothing, one for each rule of IDLE.

    Args:
        config: what the layers say together.
        layers: what is said where, later ones on top of earlier ones.
    """
    found: dict[str, str] = {}
    for rule in IDLE:
        for leaf, place in _said_in_vain(rule, layers) if rule.when(config) else ():
            found.setdefault(leaf, f"{layers[place].source}: {leaf} has no effect: {rule.reason}")
            break
    return list(found.values())


def _said_in_vain(rule: Idle, layers: Sequence[Layer]) -> Iterator[tuple[str, int]]:
    """Yield the settings that a rule concerns, each with the number of the layer that says it."""
    since = max(last_layer(layers, cause) for cause in rule.causes.split())
    for key in rule.keys.split():
        place = last_layer(layers, key)
        if place >= max(since, 0) and layers[place].judged:
            values = flat(value_at(layers[place].values, key), key)
            yield from ((leaf, place) for leaf, value in values.items() if value)


def last_layer(layers: Sequence[Layer], key: str) -> int:
    """Return the number of the last layer that sets a key, or one of a section's; -1 if none does."""
    found = [i for i, layer in enumerate(layers) if value_at(layer.values, key) is not _MISSING]
    return found[-1] if found else -1


def value_at(values: Any, key: str) -> Any:
    """Return what nested tables hold at a dotted key."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return _MISSING
        values = values[part]
    return values


def flat(value: Any, key: str = "", separator: str = ".") -> dict[str, Any]:
    """Return what nested tables hold by their dotted keys, below `key`."""
    if not isinstance(value, dict):
        return {key: value}
    pairs = [
        flat(inner, f"{key}{separator}{name}" if key else name, separator)
        for name, inner in value.items()
    ]
    return {leaf: inner for found in pairs for leaf, inner in found.items()}


def _style(config: Config) -> str:
    """Return the style of the prompt, "auto" where the tokenizer decides."""
    auto_and_new = config.prompt.style == "auto" and config.model.scratch is not None
    return "plain" if auto_and_new else config.prompt.style


def _answers(config: Config) -> str:
    """Return the style of the answers, "auto" where the tokenizer decides."""
    prompt, style = config.prompt, _style(config)
    if prompt.answer_style != "auto" or style == "auto":
        return prompt.answer_style
    return AUTO_ANSWERS[style, config.data.cot]


def _generated(config: Config) -> bool:
    return {*config.data.trained_on, *config.data.tested_on} == {"synthetic"}


def _have_splits(sources: Sequence[str]) -> bool:
    return any(s != "synthetic" and Path(s).suffix.lower() not in FILES for s in sources)
