#!/usr/bin/env bash
# Proves docker-compose.yml with a real engine: builds the CPU images, runs the addition example, steers it, kills parts of
# it, and looks whether it goes on and gets better.
#
#     deploy/prove-compose.sh             with the engine that answers here
#     deploy/prove-compose.sh --own       Debian 12, root: installs an engine from Debian's packages, starts it privately,
#                                         makes its own base and Redis images, and stops it all at the end
#
# Exit codes: 0 proved, 1 not, 77 no engine can run here. Nothing is left but images and the engine's packages; with
# --own not even images, nor the engine's bridge and packet filter. Optional: TORCH_CPU_INDEX, BUILD_CA, BUILD_PIP_CONF
# (see .env.example); PROOF_PORT (18700); PROOF_ROOTFS, what debootstrap made earlier.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly OWN=${1:-} PORT=${PROOF_PORT:-18700} PROJECT=tributary-proof NO_ENGINE=77
WORK=$(mktemp -d /var/tmp/tributary-proof.XXXXXX)
readonly WORK
DOCKERD='' WHEELS='' FURTHEST=0

say() { printf 'proof %4d s  %s\n' "$SECONDS" "$*"; }
fail() { say "NOT PROVED: $*" && exit 1; }
skip() { echo "prove-compose: skipped: $*" >&2 && exit "$NO_ENGINE"; }
dc() { docker compose --project-name "$PROJECT" --env-file "$WORK/env" --profile cpu "$@"; }

# ---- an engine

own_engine() {
    if ((EUID)) || ! command -v apt-get >/dev/null; then skip "--own needs root on Debian"; fi
    if ! command -v dockerd >/dev/null || ! command -v debootstrap >/dev/null; then
        say "installing an engine from Debian's packages"
        apt-get update -qq
        # RUNLEVEL: nothing is started by the installation.
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            docker.io iptables debootstrap >"$WORK/apt.log" 2>&1 || skip "Debian's docker.io cannot be installed here"
    fi
    export DOCKER_HOST="unix://$WORK/docker.sock"
    { iptables-save -t filter && iptables-save -t nat; } >"$WORK/rules"
    cat /proc/sys/net/ipv4/ip_forward >"$WORK/forwarding"
    [[ ! -e /sys/class/net/docker0 ]] || touch "$WORK/bridge"
    dockerd --data-root "$WORK/data" --exec-root "$WORK/exec" --pidfile "$WORK/docker.pid" -H "$DOCKER_HOST" \
        >"$WORK/dockerd.log" 2>&1 &
    DOCKERD=$!
    patiently 40 engine_answers || skip "dockerd does not start here: $(tail -n 1 "$WORK/dockerd.log")"
    say "engine $(docker version --format '{{.Server.Version}}') is up"
}

engine_answers() { docker info >/dev/null 2>&1; }

# Debian 12 has Compose 1 only; the next release's packages are unpacked for this run, and not installed.
own_plugins() {
    if docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; then return; fi
    export DOCKER_CONFIG=$WORK/config
    mkdir -p "$DOCKER_CONFIG/cli-plugins" "$WORK/apt/lists/partial" "$WORK/apt/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) trixie main" >"$WORK/apt/sources.list"
    local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$WORK/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$WORK/apt/lists" -o "Dir::Cache=$WORK/apt"
        -o APT::Sandbox::User=root)
    "${apt[@]}" update
    (cd "$WORK/apt" && "${apt[@]}" download docker-compose docker-buildx 2>/dev/null &&
        for package in ./*.deb; do dpkg -x "$package" unpacked; done)
    ln -s "$WORK"/apt/unpacked/usr/libexec/docker/cli-plugins/* "$DOCKER_CONFIG/cli-plugins/"
    say "$(docker compose version)"
}

# Where this machine's own packages come from.
# shellcheck disable=SC2016 # apt's own variable
mirror() { apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1; }

own_images() {
    local rootfs=${PROOF_ROOTFS:-$WORK/rootfs}
    if [[ ! -d $rootfs ]]; then
        say "making a base with debootstrap"
        debootstrap --variant=minbase --include=ca-certificates bookworm "$rootfs" "$(mirror)" >"$WORK/debootstrap.log"
    fi
    tar -C "$rootfs" -c . | docker import - local/debian:bookworm >/dev/null
    docker build -q -t local/redis:bookworm - >/dev/null <<'DOCKERFILE'
FROM local/debian:bookworm
RUN apt-get update && apt-get install -y --no-install-recommends redis-server && install -d -o redis -g redis /data
DOCKERFILE
    export BASE_IMAGE=local/debian:bookworm REDIS_IMAGE=local/redis:bookworm
    export BUILD_CA=${BUILD_CA:-${PIP_CERT:-/dev/null}}
}

# pip may be set up here to find wheels in a directory (torch's CPU build, say): the builds are shown the same ones.
own_wheels() {
    local directory
    directory=${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null || true)}
    if [[ -n ${BUILD_PIP_CONF:-} || ! -d $directory ]]; then return; fi
    local port gateway
    # The engine does not tell the address of a bridge that it has just made; it is the first of the network.
    gateway=$(docker network inspect bridge --format '{{(index .IPAM.Config 0).Subnet}}' |
        python3 -c 'import ipaddress; print(ipaddress.ip_network(input())[1])')
    python3 -u -m http.server --bind "$gateway" --directory "$directory" 0 >"$WORK/wheels.log" 2>&1 &
    WHEELS=$!
    patiently 60 grep -qs 'port [0-9]' "$WORK/wheels.log" ||
        fail "the wheels in $directory cannot be served: $(tail -n 1 "$WORK/wheels.log")"
    port=$(sed -n 's/.* port \([0-9]*\) .*/\1/p' "$WORK/wheels.log")
    printf '[global]\nfind-links = http://%s:%s/\ntrusted-host = %s\n' "$gateway" "$port" "$gateway" >"$WORK/pip.conf"
    export BUILD_PIP_CONF=$WORK/pip.conf
}

finish() {
    local code=$?
    trap - EXIT INT TERM
    if engine_answers && [[ -s $WORK/env ]]; then
        ((code)) && { dc ps -a; dc logs --tail 15; } 2>&1 | cut -c 1-300
        dc down --volumes --timeout 20 >/dev/null 2>&1 || true
    fi
    [[ -z $WHEELS ]] || kill "$WHEELS" 2>/dev/null || true
    if [[ -n $DOCKERD ]]; then
        kill "$DOCKERD" 2>/dev/null || true
        wait "$DOCKERD" 2>/dev/null || true
        # What an engine leaves behind in the kernel.
        [[ -e $WORK/bridge ]] || ip link delete docker0 2>/dev/null || true
        iptables-restore <"$WORK/rules" || true
        cat "$WORK/forwarding" >/proc/sys/net/ipv4/ip_forward || true
    fi
    rm -rf "$WORK"
    exit "$code"
}

# ---- looking at the run

# patiently SECONDS COMMAND...: whether the command succeeds within that time.
patiently() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 1
    done
}

api() { curl -fsS --max-time 10 -H "Authorization: Bearer $TOKEN" "http://127.0.0.1:$PORT$1" "${@:2}"; }
# field EXPRESSION: of the run's status, `s`.
field() { api /v1/status 2>/dev/null | python3 -c "import json, sys; s = json.load(sys.stdin); print($1)" 2>/dev/null; }
step() { field 's["learner"]["step"]' || echo -1; }
# In per mille, so that the shell can compare it.
accuracy() { field 'round(1000 * (s["evaluations"].get("hard", {}).get("accuracy") or 0))' || echo -1; }
reached() { (($(step) >= $1)); }
learned() { (($(accuracy) >= $1)); }
settled() { [[ $(field 's["revision"]["settled"] and s["revision"]["asked"]') == "$1" ]]; }
generators() { [[ $(field 'sum(p["alive"] for p in s["processes"] if p["role"] == "generator")') == "$1" ]]; }

# goes_on WHAT: five steps more than were ever seen; a learner that was killed goes on from its last checkpoint.
goes_on() {
    note_step
    patiently 300 reached $((FURTHEST + 5)) || fail "$1: no further step since step $FURTHEST"
    note_step
    say "$1: the run goes on, step $(step), held-out accuracy $(accuracy) ‰"
}

note_step() {
    local now
    now=$(step)
    ((now <= FURTHEST)) || FURTHEST=$now
}

# crash SERVICE: ends its first process as a fault would; the restart policy has to bring it back.
crash() {
    local container pid restarts
    container=$(dc ps -q "$1" | head -n 1)
    restarts=$(docker inspect -f '{{.RestartCount}}' "$container")
    pid=$(docker inspect -f '{{.State.Pid}}' "$container")
    if kill -KILL "$pid" 2>/dev/null; then
        patiently 60 restarted "$container" "$restarts" || fail "$1 was killed and not restarted"
    else # an engine elsewhere: docker kill counts as a manual stop, after which nothing restarts by itself
        docker kill "$container" >/dev/null && docker start "$container" >/dev/null
    fi
    say "killed $1"
}
restarted() { (($(docker inspect -f '{{.RestartCount}}' "$1") > $2)); }

# ---- what is proved

# An engine without a registry proves nothing about us.
foreign_images() {
    local image
    for image in "${BASE_IMAGE:-debian:bookworm-slim}" "${REDIS_IMAGE:-redis:7.4-bookworm}"; do
        docker image inspect "$image" >/dev/null 2>&1 || timeout 300 docker pull -q "$image" >/dev/null 2>&1 ||
            skip "there is no image $image, and none can be pulled"
    done
}

prepare() {
    TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    { echo "REDIS_PASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"; echo GRAFANA_PASSWORD=unused; } >"$WORK/env"
    { echo "TRIBUTARY_TOKEN=$TOKEN"; echo "CONTROL_PORT=$PORT"; echo TRIBUTARY_TAG=proof; } >>"$WORK/env"
    dc config --quiet
}

build() {
    local service
    for service in control-cpu learner-cpu generator-cpu; do
        dc build "$service" >"$WORK/build.log" 2>&1 || { tail -n 40 "$WORK/build.log" && fail "$service does not build"; }
        say "built $service"
    done
    docker images --filter 'reference=tributary/*' --format 'proof         image {{.Repository}}:{{.Tag}}  {{.Size}}'
}

up() {
    dc up --detach --wait --wait-timeout 400 >"$WORK/up.log" 2>&1 || { tail -n 20 "$WORK/up.log" && fail "up --wait"; }
    say "up: every service is healthy"
}

hardened() {
    local container password
    password=$(sed -n 's/^REDIS_PASSWORD=//p' "$WORK/env")
    for container in $(dc ps -q); do
        docker inspect -f 'proof         {{.Name}} user={{.Config.User}} read-only={{.HostConfig.ReadonlyRootfs}} caps={{.HostConfig.CapDrop}}' "$container"
        docker inspect -f '{{.Path}} {{.Args}} {{.Config.Healthcheck}}' "$container"
    done >"$WORK/inspected"
    grep '^proof' "$WORK/inspected"
    ps -eo args >>"$WORK/inspected"
    if grep -v grep "$WORK/inspected" | grep -F -e "$TOKEN" -e "$password"; then fail "a secret is in a command line"; fi
    [[ $(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$PORT/v1/status") == 401 ]] || fail "no token was asked"
}

switch() {
    api /v1/config -X PATCH -H 'Content-Type: application/json' -o /dev/null -d '{"algorithm": {"kind": "luffy",
        "negatives_in_failed_groups": false}, "hints": {"kind": "demonstration"}}'
    patiently 120 settled 2 || fail "revision 2 is not in force"
    say "switched to LUFFY through port $PORT: in force everywhere at step $(step)"
}

# A run with a last step: the learner makes it, ends well, and is not started again.
finishes() {
    note_step
    local last=$((FURTHEST + 10))
    echo "TRIBUTARY_MAX_STEPS=$last" >>"$WORK/env"
    dc up --detach >/dev/null 2>&1
    patiently 300 ended_well learner-cpu || fail "the learner did not end at step $last"
    sleep 5
    ended_well learner-cpu || fail "the learner was started again after its last step"
    say "told to end at step $last: the learner ended with 0, and stays so"
}
ended_well() { [[ $(docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' "$(dc ps -aq "$1")") == "exited 0" ]]; }

main() {
    trap finish EXIT
    trap 'exit 1' INT TERM
    command -v docker >/dev/null || [[ $OWN == --own ]] || skip "there is no docker command"
    if ! command -v curl >/dev/null || ! command -v python3 >/dev/null; then skip "curl and python3 are needed"; fi
    if [[ $OWN == --own ]]; then own_engine; fi
    engine_answers || skip "no Docker engine answers (start one, or use --own as root on Debian)"
    if [[ $OWN == --own ]]; then
        own_plugins
        own_images
        own_wheels
    fi
    docker compose version >/dev/null 2>&1 || skip "docker compose 2 is needed"
    foreign_images

    prepare
    build
    up
    hardened
    patiently 240 reached 3 || fail "no step was made"
    local before
    before=$(accuracy)
    say "GRPO trains: step $(step), held-out accuracy $before ‰"
    switch
    patiently 600 learned $((before + 50)) || fail "accuracy does not rise above $before ‰"
    before=$(accuracy)
    say "accuracy rises: $before ‰ at step $(step)"

    crash generator-cpu
    goes_on "generator killed"
    crash learner-cpu
    goes_on "learner killed"
    crash redis
    goes_on "Redis killed"
    local service
    for service in redis control-cpu curriculum-cpu generator-cpu learner-cpu; do
        dc restart "$service" >/dev/null 2>&1 || fail "$service cannot be restarted"
        goes_on "$service restarted"
    done
    dc up --detach --no-recreate --scale generator-cpu=2 >/dev/null 2>&1
    patiently 120 generators 2 || fail "there are not two generators"
    goes_on "two generators"
    dc down >/dev/null 2>&1
    up
    patiently 60 settled 2 || fail "down and up: revision 2 is no longer in force"
    patiently 60 reached 0 || fail "down and up: the status has no step"
    (($(step) >= FURTHEST)) || fail "the run was at step $FURTHEST before down and up, and is at $(step)"
    goes_on "down and up"
    patiently 300 learned $((before + 50)) || fail "accuracy was $before ‰ before the faults and is $(accuracy) ‰ now"
    finishes
    say "proved: step $(step), accuracy $(accuracy) ‰, quarantined $(field 's["backlog"]["quarantined"]')"
}

main
