#!/usr/bin/env bash
# A verl run that is watched: nothing of it is ours but the variable. Start a coordinator first (omni-rl serve), and set
# what it prints: OMNI_RL_URL and OMNI_RL_TOKEN_FILE. Further arguments are verl's. The data are those that verl's
# examples/data_preprocess/gsm8k.py writes. calculate_log_probs is verl's default since 0.9, and was not before.
set -euo pipefail
: "${OMNI_RL_URL:?the address that omni-rl serve printed}"

python -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_files="$HOME/data/gsm8k/train.parquet" \
    data.val_files="$HOME/data/gsm8k/test.parquet" \
    data.train_batch_size=256 \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-0.5B-Instruct \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16 \
    actor_rollout_ref.rollout.calculate_log_probs=True \
    trainer.n_gpus_per_node=1 \
    trainer.project_name=examples \
    trainer.experiment_name=gsm8k \
    "$@"
