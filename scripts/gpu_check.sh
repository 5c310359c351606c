#!/usr/bin/env bash
# All that needs a GPU: the tests marked gpu, then the benchmarks; a table of what came of them is printed last.
#   bash scripts/gpu_check.sh                    # on random pictures
#   bash scripts/gpu_check.sh --data DIR         # and on the JPEGs of DIR, as train.py takes it
#   bash scripts/gpu_check.sh --list             # what would be run; with --data DIR, what DIR adds too
# The outputs go into gpu_check/ (--out OTHER). PYTHON names an interpreter that has the packages; without it .venv is made
# and used. MODELS, SIZE, BATCH, SWEEP and REPEATS change what is measured.
set -uo pipefail
data="" out=gpu_check lists=""
while [ $# -gt 0 ]; do
    case $1 in
        --data | --out) [ $# -gt 1 ] || { echo "gpu_check.sh: error: $1: names nothing" >&2; exit 2; } ;;&
        --data) data=$(realpath -m -- "$2"); shift 2 ;;
        --out) out=$(realpath -m -- "$2"); shift 2 ;;
        --list) lists=yes; shift ;;
        -h | --help) sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$0"; exit 0 ;;
        *) echo "gpu_check.sh: error: $1: unknown; use --data DIR, --out DIR or --list" >&2; exit 2 ;;
    esac
done
cd "$(dirname "$0")/.." || exit 2
if [ -n "$data" ] && [ ! -d "$data" ]; then
    echo "gpu_check.sh: error: --data $data: no such folder" >&2
    exit 2
fi
models=${MODELS:-cspresnet50 cspresnext50 cspdarknet53}
first=${models%% *}
common="--size ${SIZE:-256} --batch-size ${BATCH:-128} --repeats ${REPEATS:-5}"

# name|command: a line each, in the order of their worth, as a machine may be lent for a short while.
commands="tests|-m pytest -m gpu -rs
train|scripts/benchmark_train.py $models $common
loop|scripts/benchmark_train.py $first $common --loop-overhead
cross_stage|scripts/benchmark_cross_stage.py $models $common
tune|scripts/tune.py $first $common --compile
sweep|scripts/tune.py $first $common --sweep ${SWEEP:-32 64 128 256 512}
safety|scripts/benchmark_safety.py --model $first $common
deterministic|scripts/benchmark_deterministic.py $first $common
scaling|scripts/benchmark_scaling.py $first $common"
if [ -n "$data" ]; then
    commands="$commands
validate|scripts/benchmark_validate.py DIR --model $first
epoch|scripts/benchmark_train.py $first $common --data DIR
loader|scripts/benchmark_loader.py DIR
augment|scripts/benchmark_augment.py DIR --step-model $first"
fi
if [ -n "$lists" ]; then
    echo "$commands"
    exit 0
fi

if [ -z "${PYTHON:-}" ]; then
    # Before anything is installed: a driver shows itself as a command, or as a device (a Jetson's, and WSL's, too).
    shopt -s nullglob
    signs=(/dev/nvidia[0-9]* /dev/nvhost-gp[u] /dev/dx[g])
    if ! command -v nvidia-smi >/dev/null && [ ${#signs[@]} = 0 ]; then
        echo "gpu_check.sh: error: there is no CUDA GPU; nothing was installed or run" >&2
        exit 2
    fi
    source scripts/environment.sh
    environment requirements-dev.txt
fi
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_check.sh: error: $PYTHON sees no CUDA GPU; nothing was run" >&2
    exit 2
fi
mkdir -p "$out"
failed=0 table="what            code  seconds  last line"
while IFS='|' read -r name words; do
    echo "== $name: $PYTHON $words"
    began=$SECONDS
    read -ra parts <<<"$words"
    for i in "${!parts[@]}"; do
        [ "${parts[i]}" != DIR ] || parts[i]=$data
    done
    "$PYTHON" "${parts[@]}" </dev/null 2>&1 | tee "$out/$name.log"
    code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || failed=1
    table+=$'\n'$(printf '%-15s %4s %8s  %s' "$name" "$code" $((SECONDS - began)) "$(tail -n 1 "$out/$name.log" | cut -c 1-100)")
done <<<"$commands"
echo
echo "$table" | tee "$out/table.txt"
exit $failed
