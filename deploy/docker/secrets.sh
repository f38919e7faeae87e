#!/usr/bin/env bash
# Fills DIRECTORY with what docker-compose.yml needs and nobody should choose; what is there stays.
#   deploy/docker/secrets.sh DIRECTORY
set -euo pipefail
umask 077
directory=${1:?usage: deploy/docker/secrets.sh DIRECTORY}
omni_rl=${OMNI_RL:-omni-rl}
mkdir -p "$directory"

# Alertmanager sends what wakes somebody there. An alert without an address would wake nobody, so there is no default.
[ -e "$directory/alert_url" ] ||
    printf '%s' "${OMNI_RL_ALERT_URL:?where alerts go - an address that takes the webhooks of Alertmanager}" > "$directory/alert_url"

random() {
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

for name in ray_token ledger_password grafana_password; do
    [ -e "$directory/$name" ] || random > "$directory/$name"
done
[ -e "$directory/ledger_pgpass" ] ||
    printf 'postgres:5432:omni_rl:omni_rl:%s\n' "$(cat "$directory/ledger_password")" > "$directory/ledger_pgpass"
[ -e "$directory/tokens/owner" ] || "$omni_rl" token --directory "$directory" > /dev/null
[ -e "$directory/tokens/prometheus" ] || "$omni_rl" token --directory "$directory" --name prometheus --scope read > /dev/null
[ -e "$directory/tokens/job" ] || "$omni_rl" token --directory "$directory" --name job --scope sync > /dev/null

# These programs run under users of their own. The directory lets nobody on this machine but its owner reach the files.
chmod 0644 "$directory/ledger_password" "$directory/grafana_password" "$directory/tokens/prometheus" "$directory/alert_url"
echo "$directory is filled; its owner's token for the API is in $directory/tokens/owner"
