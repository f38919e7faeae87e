#!/usr/bin/env bash
# A Miles or slime run that is watched: OMNI_RL_URL=... OMNI_RL_TOKEN_FILE=... examples/miles-slime.sh train.py ARGUMENTS
# Start a coordinator first (omni-rl serve), and set what it prints. The variables go to every node with the job.
set -euo pipefail
: "${OMNI_RL_URL:?the address that omni-rl serve printed}"
: "${OMNI_RL_TOKEN_FILE:?the file with the token, on every node}"

environment=$(printf '{"env_vars": {"OMNI_RL_URL": "%s", "OMNI_RL_TOKEN_FILE": "%s", "OMNI_RL_RUN": "%s"}}' \
    "$OMNI_RL_URL" "$OMNI_RL_TOKEN_FILE" "${OMNI_RL_RUN:-}")
ray job submit --runtime-env-json "$environment" -- \
    python3 "$@" --get-mismatch-metrics --custom-tis-function-path omni_rl.watch.miles.tis
