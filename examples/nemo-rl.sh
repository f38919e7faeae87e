#!/usr/bin/env bash
# A NeMo RL run that is watched from beside it, by the files that its logger writes: nothing in the run is changed. Start
# a coordinator first (omni-rl serve), and set what it prints: OMNI_RL_URL and OMNI_RL_TOKEN_FILE.
#     bash examples/nemo-rl.sh logs/exp_001              # follows the run until Ctrl-C
#     bash examples/nemo-rl.sh logs/exp_001 --once       # posts what is there; exit code 1 unless all is ok
set -euo pipefail
: "${1:?the log directory of a NeMo RL run, where train_data_step*.jsonl are}"

omni-rl watch nemo-rl "$@"
