#!/bin/sh
# Starts Redis with a password that is in no command line and in no file: the last lines of its configuration come
# through a pipe. REDISCLI_AUTH, the password, is what redis-cli reads as well; REDIS_MAXMEMORY is the memory limit.
set -eu

case "${REDISCLI_AUTH:?set REDIS_PASSWORD in .env}" in
*[!A-Za-z0-9_-]*)
    echo "REDIS_PASSWORD goes into a URL: use letters, digits, - and _ only" >&2
    exit 2
    ;;
esac

exec redis-server - <<END
include /etc/redis/redis.conf
maxmemory ${REDIS_MAXMEMORY:?set REDIS_MAXMEMORY}
requirepass ${REDISCLI_AUTH}
END
