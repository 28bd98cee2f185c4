#!/bin/sh
# Makes .env from .env.example with fresh secrets, readable by you alone. One that is there already is left as it is.
set -eu
cd "$(dirname "$0")/.."

if [ -e .env ]; then
    echo ".env is there already: it is left as it is" >&2
    exit 0
fi
umask 077
trap 'rm -f .env.new' EXIT
: >.env.new
while IFS= read -r line; do
    case "$line" in
    REDIS_PASSWORD= | TRIBUTARY_TOKEN= | GRAFANA_PASSWORD=) line="$line$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
    esac
    printf '%s\n' "$line" >>.env.new
done <.env.example
mv .env.new .env
echo "made .env: see what it sets, then docker compose up -d"
