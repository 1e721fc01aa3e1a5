# What the scripts of this folder share; read with `source`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
subq=${SUBQ:-$here/../.build/release/subq}
[ -x "$subq" ] || { echo "$subq is missing: run 'make build' first, or name it in SUBQ" >&2; exit 1; }

# field FILE SPLIT NAME: a number of the last record of a split in a run's metrics.jsonl.
field() {
    grep "\"split\":\"$2\"" "$1" | tail -n 1 | sed -n "s/.*\"$3\":\([-0-9.e+]*\).*/\1/p"
}

# measured FILE NAME: a number in the JSON of `subq evaluate --json`.
measured() {
    sed -n "s/.*\"$2\" : \([-0-9.e+]*\).*/\1/p" "$1"
}

machine() {
    printf 'Machine: %s, %s cores, %s GiB; %s\n' \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" \
        "$(awk '/MemTotal/ {printf "%.0f", $2 / 1048576}' /proc/meminfo)" "$(date +%Y-%m-%d)"
    "$subq" doctor | awk '/LibTorch library|threads|instruction set|kernels run with/'
}
