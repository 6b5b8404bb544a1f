#!/usr/bin/env bash
# Everything that takes a GPU: library, golden files, tests and measurements. Nothing is installed on the machine.
#
#   benchmarks/on_gpu.sh check             # library, golden files with every tactic, the C example, tests/gpu
#   benchmarks/on_gpu.sh bench             # benchmarks/kernels.py; CASES="qlinear block" picks some
#   benchmarks/on_gpu.sh keep              # puts parts of TensorRT-RTX that were copied here one by one aside
#   benchmarks/on_gpu.sh rtx               # an engine of TensorRT-RTX with the plugins
#   benchmarks/on_gpu.sh STEP ...          # steps by their names: tools library goldens example tests qlinear quantize-token qattention block
#
# DRY=1 says what would run. LIMIT: seconds of a run [570]; a step that does not fit is cut off and fails, the next ones still run.
# OUT: where results go [build/gpu/out]: summary.txt, goldens.jsonl, tests.txt, kernels-CASE.json, libvditc_plugins.so if it was built.
# The exit code is the number of steps that failed.
#
# What must be there: a CUDA GPU with its driver, Python 3.11 or newer with torch, numpy, onnx, onnx_ir, ml_dtypes, safetensors and pytest; gcc for
# the example; nvcc, cmake and ninja only where no library is brought.
#
# What may be brought (BUILD is build/gpu, which git ignores):
#   check, bench   BUILD/libvditc_plugins.so, built beforehand for that GPU:       vditc plugins build --arch 90a -o /tmp/built
#                    cp /tmp/built/x86_64/libvditc_plugins.so build/gpu/
#                  or BUILD/wheels with CUTLASS's headers, to build there:          pip download --no-deps -d build/gpu/wheels nvidia-cutlass==4.2.0.0
#   rtx            BUILD/part-N, TensorRT-RTX in one part or in several. For the Python there (PY=3.12):
#                    pip download --no-deps --only-binary=:all: --python-version $PY --platform manylinux_2_28_x86_64 -d rtx \
#                      tensorrt_rtx_cu13_libs==1.7.1.116 tensorrt_rtx_cu13_bindings==1.7.1.116
#                    (cd rtx && for w in *.whl; do python -m zipfile -e "$w" site; done)
#                    cp -r .venv/lib/python3*/site-packages/tensorrt_rtx rtx/site/     # the front end, plain Python
#                    tar cz -C rtx site | split -b 40M - build/gpu/part-
#                  `keep` collects them in KEPT [/tmp/vditc-gpu-parts], which must stay until `rtx`.
# shellcheck disable=SC2016,SC2329 # what bash -c is given expands there; steps are called by their names
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

BUILD=${BUILD:-build/gpu}
OUT=${OUT:-$BUILD/out}
LIMIT=${LIMIT:-570}
KEPT=${KEPT:-/tmp/vditc-gpu-parts}
PYTHON=${PYTHON:-python3}
DRY=${DRY:-}
CASES=${CASES:-quantize-token qattention block qlinear}
BEGAN=$SECONDS
FAILED=0

export PYTHONPATH="$PWD/src:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export VDITC_REQUIRE_GPU=1 # tests that would be skipped fail
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-/tmp/vditc-gpu-cache}
mkdir -p "$OUT" "$BUILD" || exit 1
OUT=$(cd "$OUT" && pwd)
BUILD=$(cd "$BUILD" && pwd)

left() { echo $((LIMIT - (SECONDS - BEGAN))); }
say() { echo "$*" | tee -a "$OUT/summary.txt"; }

# run NAME COMMAND...: within the time that is left; what it says goes to the terminal.
run() {
  local name=$1 begun=$SECONDS code=0
  shift
  if [ -n "$DRY" ]; then
    printf '%-16s %s\n' "$name" "$*"
    return 0
  fi
  if [ "$(left)" -lt 5 ]; then
    say "$name: not run, no time left"
    FAILED=$((FAILED + 1))
    return 1
  fi
  echo "== $name"
  timeout --kill-after=5 "$(left)" "$@" || code=$?
  if [ $code -eq 0 ]; then
    say "$name: done in $((SECONDS - begun)) s"
  else
    say "$name: FAILED with $code after $((SECONDS - begun)) s$([ $code -eq 124 ] && echo ', out of time')"
    FAILED=$((FAILED + 1))
  fi
  return $code
}

# As nvcc names the GPU: 89, 90a.
architecture() {
  local found
  found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '. ') || return 1
  case $found in
    9? | 1??) echo "${found}a" ;;
    *) echo "$found" ;;
  esac
}

step_tools() {
  run tools bash -c 'nvidia-smi && (nvcc --version || true) && '"$PYTHON"' -c "
import sys, torch
print(sys.version, torch.__version__, torch.cuda.get_device_name(), torch.cuda.get_device_capability())"'
}

# The carried library, or one that is built here.
step_library() {
  if [ -f "$VDITC_PLUGINS_LIBRARY" ]; then
    run "library (carried)" "$PYTHON" -c 'import os; from pathlib import Path; from vditc.plugins.library import Library
print("sm_%d" % Library(Path(os.environ["VDITC_PLUGINS_LIBRARY"])).sm)'
    return
  fi
  local wheel
  wheel=$(find "$BUILD/wheels" -name 'nvidia_cutlass-*.whl' 2>/dev/null | head -1)
  if [ -n "$wheel" ] && [ -z "$DRY" ]; then
    "$PYTHON" -m zipfile -e "$wheel" "$XDG_CACHE_HOME/cutlass" && export CUTLASS_ROOT=$XDG_CACHE_HOME/cutlass/cutlass_library/source
  fi
  local arch=GPU
  [ -n "$DRY" ] || arch=$(architecture) || { say "library: FAILED, no GPU that nvidia-smi knows"; FAILED=$((FAILED + 1)); return 1; }
  run "library (built)" "$PYTHON" -c '
import shutil, sys
from vditc.plugins.build import Wanted, build
built = build(Wanted.of(None, [sys.argv[1]], cutlass=sys.argv[2] == "1"))
print(built.path, built.facts["bytes"], "bytes")
for to in sys.argv[3:]:
    shutil.copy(built.path, to)' "$arch" "$([ -n "${CUTLASS_ROOT:-}" ] && echo 1 || echo 0)" "$VDITC_PLUGINS_LIBRARY" "$OUT/libvditc_plugins.so"
}

step_goldens() {
  run goldens bash -c 'set -o pipefail; '"$PYTHON"' -m vditc.plugins.goldens --library "$VDITC_PLUGINS_LIBRARY" --goldens tests/plugins/goldens --json |
    tee '"'$OUT/goldens.jsonl'"' | '"$PYTHON"' -c "
import json, sys
rows = [json.loads(line) for line in sys.stdin]
wrong = [row for row in rows if row[\"wrong\"]]
for row in wrong: print(row[\"golden\"], row[\"tactic\"], row[\"wrong\"])
ran = [row for row in rows if row[\"wrong\"] is None and row[\"skipped\"] is None]
print(len(ran), \"right,\", len(wrong), \"wrong; tactics:\", *sorted({row[\"tactic\"] for row in ran}))
sys.exit(bool(wrong) or not ran)"'
}

step_example() {
  local program=$XDG_CACHE_HOME/one_layer
  mkdir -p "$XDG_CACHE_HOME"
  run example bash -c 'gcc -std=c99 -Iplugins plugins/example/one_layer.c "$VDITC_PLUGINS_LIBRARY" -Wl,-rpath,"$(dirname "$VDITC_PLUGINS_LIBRARY")" \
    -o '"'$program' && '$program'"
}

# confcutdir: the whole suite's conftest needs packages that are not there.
step_tests() {
  run tests bash -c 'set -o pipefail; '"$PYTHON"' -m pytest tests/gpu --confcutdir=tests/gpu -p no:cacheprovider -q --maxfail=20 --durations=10 |
    tee '"'$OUT/tests.txt'"
}

bench() {
  run "bench $1" "$PYTHON" benchmarks/kernels.py --case "$1" --library "$VDITC_PLUGINS_LIBRARY" --seconds "$(($(left) - 20))" --out "$OUT/kernels-$1.json"
}

step_keep() {
  mkdir -p "$KEPT"
  run keep bash -c "cp '$BUILD'/part-* '$KEPT/' && ls -la '$KEPT'"
}

step_rtx() {
  run "rtx unpacked" bash -c "mkdir -p '$XDG_CACHE_HOME' && cat '$KEPT'/part-* | tar xz -C '$XDG_CACHE_HOME'" || return
  PYTHONPATH="$XDG_CACHE_HOME/site:$PYTHONPATH" run rtx bash -c 'set -o pipefail; '"$PYTHON"' -m pytest tests/gpu/test_tensorrt_on_gpu.py \
    --confcutdir=tests/gpu -p no:cacheprovider -q -rs | tee '"'$OUT/rtx.txt'"
}

steps=()
for name in "${@:-check}"; do
  case $name in
    check) steps+=(tools library goldens example tests) ;;
    bench) read -ra chosen <<<"$CASES"; steps+=(library "${chosen[@]}") ;;
    rtx) steps+=(library rtx) ;;
    tools | library | goldens | example | tests | keep) steps+=("$name") ;;
    qlinear | quantize-token | qattention | block) steps+=(library "$name") ;;
    *) echo "on_gpu.sh: found $name; wanted check, bench, keep, rtx or a step (see the top of this file)" >&2; exit 2 ;;
  esac
done
: >"$OUT/summary.txt"
export VDITC_PLUGINS_LIBRARY=$BUILD/libvditc_plugins.so
done_library=
for name in "${steps[@]}"; do
  case $name in
    library) [ -n "$done_library" ] || step_library; done_library=1 ;;
    qlinear | quantize-token | qattention | block) bench "$name" ;;
    *) "step_$name" ;;
  esac
done
[ -n "$DRY" ] || { echo "== summary"; cat "$OUT/summary.txt"; }
exit $FAILED
