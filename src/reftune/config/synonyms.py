"""What other libraries call our keys: TRL, transformers, peft and verl."""

import difflib
from collections.abc import Collection

SYNONYMS = {
    "dataset_name": "data.train",
    "dataset_train_split": "data.train_split",
    "dataset_test_split": "data.test_split",
    "dataset_config": "data.subset",
    "max_prompt_length": "prompt.max_prompt_tokens",
    "max_completion_length": "prompt.max_new_tokens",
    "response_length": "prompt.max_new_tokens",
    "chat_template_kwargs": "prompt.template_args",
    "system_prompt": "prompt.system",
    "model_name_or_path": "model.name",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "optim": "model.optimizer",
    "lora_r": "lora.rank",
    "r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.targets",
    "target_modules": "lora.targets",
    "reward_funcs": "reward.function",
    "reward_weights": "reward.weights",
    "num_train_epochs": "sft.epochs",
    "per_device_train_batch_size": "sft.batch_size",
    "max_length": "sft.max_tokens",
    "max_seq_length": "sft.max_tokens",
    "warmup_ratio": "sft.lr_warmup_share",
    "warmup_steps": "ppo.lr_warmup_steps",
    "lr_scheduler_type": "ppo.lr_schedule",
    "max_steps": "ppo.steps",
    "total_episodes": "ppo.steps",
    "lr": "ppo.learning_rate",
    "train_batch_size": "ppo.questions_per_step",
    "num_generations": "ppo.samples_per_question",
    "num_ppo_epochs": "ppo.ppo_epochs",
    "num_iterations": "ppo.ppo_epochs",
    "ppo_mini_batch_size": "ppo.minibatch_size",
    "adv_estimator": "ppo.advantage",
    "norm_adv_by_std_in_grpo": "ppo.scale_rewards",
    "filter_groups": "ppo.dynamic_sampling",
    "max_num_gen_batches": "ppo.dynamic_sampling",
    "use_dynamic_sampling": "ppo.dynamic_sampling",
    "dynamic_sampling_max_gen_batches": "ppo.dynamic_sampling",
    "accuracy_lower_bound": "ppo.difficulty_range",
    "accuracy_upper_bound": "ppo.difficulty_range",
    "overlong_buffer_length": "ppo.overlong_buffer",
    "overlong_filtering": "ppo.mask_truncated",
    "mask_truncated_completions": "ppo.mask_truncated",
    "sync_ref_model": "ppo.reference_reset_steps",
    "ref_model_sync_steps": "ppo.reference_reset_steps",
    "lam": "ppo.gae_lambda",
    "beta": "ppo.kl_coef",
    "init_kl_coef": "ppo.kl_coef",
    "kl_loss_coef": "ppo.kl_coef",
    "use_kl_loss": "ppo.kl_penalty",
    "use_kl_in_reward": "ppo.kl_penalty",
    "kl_loss_type": "ppo.kl_penalty",
    "kl_estimator": "ppo.kl_penalty",
    "loss_mode": "ppo.policy_loss",
    "importance_sampling_level": "ppo.policy_loss",
    "epsilon": "ppo.clip_range",
    "cliprange": "ppo.clip_range",
    "clip_ratio": "ppo.clip_range",
    "clip_ratio_low": "ppo.clip_range",
    "epsilon_high": "ppo.clip_range_high",
    "clip_ratio_high": "ppo.clip_range_high",
    "delta": "ppo.dual_clip",
    "clip_ratio_c": "ppo.dual_clip",
    "dppo_mask_high": "ppo.tv_range",
    "dppo_mask_low": "ppo.tv_range",
    "loss_agg_mode": "ppo.loss_aggregation",
    "entropy_coeff": "ppo.entropy_coef",
    "target_entropy": "ppo.entropy_target",
    "use_adaptive_entropy": "ppo.entropy_target",
    "cliprange_value": "ppo.value_clip_range",
    "vf_coef": "ppo.value_coef",
    "vllm_importance_sampling_cap": "ppo.importance_sampling_cap",
    "vllm_importance_sampling_mode": "ppo.importance_sampling",
    "vllm_importance_sampling_clip_min": "ppo.importance_sampling_min",
    "vllm_importance_sampling_clip_max": "ppo.importance_sampling_max",
    "rollout_is": "ppo.importance_sampling",
    "rollout_is_threshold": "ppo.importance_sampling_cap",
    "cast_lm_head_to_fp32": "model.float32_head",
    "eval_steps": "ppo.validate_every_steps",
    "save_steps": "ppo.checkpoint_every_steps",
    "num_sample_generations": "ppo.samples_logged_per_step",
    "report_to": "compute.trackers",
    "use_vllm": "compute.sampler",
    "vllm_mode": "compute.vllm_server",
    "vllm_server_base_url": "compute.vllm_server",
    "vllm_server_host": "compute.vllm_server",
    "vllm_gpu_memory_utilization": "compute.vllm_gpu_memory",
    "gpu_memory_utilization": "compute.vllm_gpu_memory",
    "run_name": "name",
}

_ONE_POLICY = "the samples must come from the policy itself, or the ratio of PPO is another"
NOT_SUPPORTED = {
    "gradient_accumulation_steps": "batch sizes are those of an optimizer step, and"
    " compute.tokens_per_microbatch cuts them",
    "num_mini_batches": "ppo.minibatch_size is the number of samples in each of them",
    "whiten_rewards": "advantages are normalised in place of rewards; see ppo.whiten",
    "logging_steps": "every step is logged",
    "ref_model_mixup_alpha": "ppo.reference_reset_steps makes the policy the reference, no mixture",
    "missing_eos_penalty": "a response that was cut off is worth 0",
    "loss_type": "it is three keys here: ppo.advantage, ppo.policy_loss and ppo.loss_aggregation",
    "top_p": _ONE_POLICY,
    "top_k": _ONE_POLICY,
    "repetition_penalty": _ONE_POLICY,
    "load_in_4bit": "weights have 16 or 32 bits; see model.dtype and lora.rank",
    "load_in_8bit": "weights have 16 or 32 bits; see model.dtype and lora.rank",
    "deepspeed": "every process holds the whole model; see `reftune plan`",
    "fsdp": "every process holds the whole model; see `reftune plan`",
}


def advice(key: str, known: Collection[str], everywhere: Collection[str]) -> str:
    """Return what to write in place of an unknown key.

    Args:
        key: in full, as it was given.
        known: the keys of its section.
        everywhere: all keys in full.
    """
    leaf = key.rpartition(".")[2]
    if leaf in SYNONYMS:
        return f"it is called {SYNONYMS[leaf]} here"
    if leaf in NOT_SUPPORTED:
        return f"it is not supported: {NOT_SUPPORTED[leaf]}"
    if elsewhere := [full for full in everywhere if full.rpartition(".")[2] == leaf]:
        return f"there is {' and '.join(elsewhere)}"
    return closest(leaf, known)


def closest(name: str, known: Collection[str]) -> str:
    """Return a question that names what was probably meant, or else all there is."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(sorted(known))}"
