"""A training as verl 0.9.1 is told of it: which configs it can repeat, and the overrides of `verl.trainer.main_ppo`.

Exported are algorithms whose token weights equal verl's at the on-policy point (opo and dr_grpo to the last bit, rloo and grpo to
rounding; `tests/opo/export` compares them where verl imports). Losses after the first update are clipped alike: verl's second clip
of negative advantages (`clip_ratio_c`) is put out of reach.
"""

from collections.abc import Iterator
from typing import Any

from opo.config.parts import OPTIONS
from opo.config.schema import RunConfig
from opo.errors import near

ESTIMATORS = {"opo": "opo", "dr_grpo": "grpo", "rloo": "rloo", "grpo": "grpo"}  # ours -> algorithm.adv_estimator
AGGREGATIONS = {
    "sequence_sum": "seq-mean-token-sum",
    "sequence_mean": "seq-mean-token-mean",
    "token_mean": "token-mean",
}
KL = {"k1": "kl", "k2": "mse", "k3": "low_var_kl"}
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
STD_EPS = 1e-6  # of verl's GRPO, which is no key there
NO_CLIP = 1e9  # above every ratio: both sides bound its logarithm by 20
DIFFERENCES = {  # of algorithms that verl has under a like name
    "group_mean": "verl has it as dr_grpo, with the same weights; give algo=dr_grpo",
    "reinforce": "verl has no estimator without a baseline",
    "reinforce_pp": "verl whitens by the unbiased variance of the tokens (n - 1), so weights are smaller by half of 1 / tokens",
    "reinforce_pp_baseline": "verl whitens over tokens, which takes off a second, length-weighted mean, and by n - 1",
    "gpg": "verl scales by responses / responses whose reward is not zero, here by groups / groups whose rewards differ",
    "remax": "its weights equal verl's, but the trainer of 0.9.1 draws no greedy responses; only the deprecated one (use_v1=false) does",
    "ppo": "verl's critic starts with a random head, here with zeros, so its values differ; its advantages are whitened by n - 1",
    "dapo": "verl draws new prompts for groups whose rewards are equal, here they are left out of sum and count; "
    "without that, algo=grpo algo.clip_high=0.28 algo.aggregation=token_mean is the rest of it",
}


def differences(config: RunConfig, gpus: int) -> Iterator[str]:
    """Why verl would train something else: one line each, the key first. Nothing where it would not."""
    algo, optim = config.algo, config.optim
    if algo.name not in ESTIMATORS:
        why = DIFFERENCES.get(algo.name, "verl has no estimator with its token weights")
        yield f"algo={algo.name}: {why}; exported are {', '.join(ESTIMATORS)}{near(algo.name, ESTIMATORS)}"
        return
    for kind in OPTIONS:
        if (part := getattr(algo, kind)) is not None:
            yield f"algo.{kind}={part.name}: verl has no such part; allowed is null"
    hyper = algo.hyperparameters
    if hyper.get("std_eps", STD_EPS) != STD_EPS:
        yield f"algo.std_eps={hyper['std_eps']}: verl adds {STD_EPS} to the standard deviation; allowed is that"
    if not float(hyper.get("denominator", 1.0)).is_integer():
        yield f"algo.denominator={hyper['denominator']}: verl divides by a whole number; allowed is one"
    if algo.minibatches > 1 and hyper.get("aggregation") == "token_mean":
        yield "algo.aggregation=token_mean: verl's mean is over a minibatch, here over the batch; allowed with algo.minibatches=1"
    if optim.method != "adamw":
        yield f"optim.method={optim.method}: exported is adamw"
    if optim.schedule == "linear":
        yield "optim.schedule=linear: verl has constant and cosine"
    if algo.updates_per_rollout > 1 and (optim.schedule != "constant" or optim.warmup_steps):
        yield "optim.schedule: verl's rate moves once a rollout batch, here once an update; allowed is constant without warm-up"
    if config.model.dtype not in DTYPES:
        yield f"model.dtype={config.model.dtype}: verl takes float32 and bfloat16"
    if config.rollout.num_prompts * config.rollout.group_size % gpus:
        yield (
            f"gpus={gpus}: must divide the {config.rollout.num_prompts * config.rollout.group_size} responses of a batch "
            "(rollout.num_prompts x rollout.group_size)"
        )


def overrides(config: RunConfig, gpus: int, machines: int) -> dict[str, Any]:
    """Keys of verl's `ppo_trainer` that repeat this training; what concerns files is `verl_files`' affair."""
    model, rollout, algo = config.model, config.rollout, config.algo
    actor, engine = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    tracked = {"off": ["console"]}.get(config.tracking.mode, ["console", "wandb"])
    return {
        **_algorithm(config),
        **_optimizer(config),
        "data.train_batch_size": rollout.num_prompts,
        "data.max_response_length": rollout.max_new_tokens,
        "data.shuffle": False,  # train.parquet holds the prompts of each step in order
        "data.truncation": "error",
        f"{engine}.name": "vllm",
        f"{engine}.n": rollout.group_size,
        f"{engine}.temperature": rollout.temperature,
        f"{engine}.top_p": rollout.top_p,
        f"{engine}.top_k": rollout.top_k or -1,
        f"{engine}.seed": config.seed % 2**31,
        f"{engine}.dtype": model.dtype,
        f"{engine}.tensor_model_parallel_size": 1,
        f"{engine}.val_kwargs.do_sample": True,
        f"{engine}.val_kwargs.n": config.evaluate.group_size,
        f"{engine}.val_kwargs.temperature": rollout.temperature,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.fsdp_config.model_dtype": DTYPES[model.dtype],
        f"++{actor}.fsdp_config.mixed_precision": "{param_dtype:%s,reduce_dtype:fp32,buffer_dtype:fp32}"
        % ("fp32" if model.compute == "float32" and model.dtype == "float32" else "bf16"),
        "actor_rollout_ref.model.lora_rank": model.lora_rank,
        "actor_rollout_ref.model.lora_alpha": model.lora_alpha,
        "actor_rollout_ref.model.target_modules": model.lora_targets,
        "trainer.total_training_steps": config.steps,
        "trainer.total_epochs": 1,
        "trainer.balance_batch": algo.minibatches == 1,  # reordering would change what a minibatch holds
        "trainer.n_gpus_per_node": gpus,
        "trainer.nnodes": machines,
        "trainer.val_before_train": config.evaluate.every > 0,
        "trainer.test_freq": config.evaluate.every or -1,
        "trainer.save_freq": config.checkpoint.every or config.steps,
        "trainer.max_actor_ckpt_to_keep": config.checkpoint.keep or None,
        "trainer.project_name": config.tracking.project,
        "trainer.experiment_name": f"{algo.name}-{config.task.name}-s{config.seed}",
        "trainer.logger": tracked,
    }


def _algorithm(config: RunConfig) -> dict[str, Any]:
    """Advantages, clip, aggregation, KL and entropy, and how a batch is divided."""
    algo, hyper, actor = config.algo, config.algo.hyperparameters, "actor_rollout_ref.actor"
    chosen: dict[str, Any] = {
        "algorithm.adv_estimator": ESTIMATORS[algo.name],
        f"{actor}.loss_agg_mode": AGGREGATIONS[hyper.get("aggregation", "sequence_sum")],
        f"{actor}.clip_ratio_low": hyper.get("clip_low", 0.2),
        f"{actor}.clip_ratio_high": hyper.get("clip_high", 0.2),
        f"{actor}.clip_ratio_c": NO_CLIP,
        f"{actor}.ppo_mini_batch_size": config.rollout.num_prompts // algo.minibatches,
        f"{actor}.ppo_epochs": algo.updates_per_rollout // algo.minibatches,
        f"{actor}.entropy_coeff": algo.entropy_coef,
    }
    if ESTIMATORS[algo.name] == "grpo":
        chosen["algorithm.norm_adv_by_std_in_grpo"] = algo.name == "grpo"
    if hyper.get("denominator", 1.0) != 1.0:
        chosen |= {
            f"{actor}.loss_agg_mode": "seq-mean-token-sum-norm",
            f"{actor}.loss_scale_factor": int(hyper["denominator"]),
        }
    if algo.kl_coef and algo.kl_placement == "loss":
        chosen |= {f"{actor}.use_kl_loss": True, f"{actor}.kl_loss_coef": algo.kl_coef}
        chosen[f"{actor}.kl_loss_type"] = KL[algo.kl_estimator]
    elif algo.kl_coef:
        chosen |= {"algorithm.use_kl_in_reward": True, "algorithm.kl_ctrl.kl_coef": algo.kl_coef}
        chosen["algorithm.kl_penalty"] = KL[algo.kl_estimator]
    return chosen


def _optimizer(config: RunConfig) -> dict[str, Any]:
    """AdamW with every constant said: verl's own betas are 0.9 and 0.999, its weight decay 0.01."""
    optim, group = config.optim, "actor_rollout_ref.actor.optim"
    return {
        f"{group}.lr": optim.learning_rate,
        f"{group}.betas": [optim.beta1, optim.beta2],
        f"{group}.override_optimizer_config": f"{{eps:{optim.eps}}}",
        f"{group}.weight_decay": optim.weight_decay,
        f"{group}.lr_scheduler_type": optim.schedule,
        f"{group}.lr_warmup_steps": optim.warmup_steps,
        "actor_rollout_ref.actor.grad_clip": optim.max_grad_norm or NO_CLIP,
    }


def notes(config: RunConfig) -> list[str]:
    """What stays different, in a sentence each."""
    found = [
        "Sampling is vLLM's: the same distribution, other random numbers, so other responses.",
        "A response that cannot be scored counts 0 in verl (its metric `unscored` says how many); here it is left out.",
    ]
    if config.optim.warmup_steps:
        found.append("verl's warm-up begins at a rate of zero, one step behind.")
    if config.algo.minibatches > 1:
        found.append(
            "verl takes minibatches in the order of the batch and averages within each; here they are drawn at random."
        )
    return found
