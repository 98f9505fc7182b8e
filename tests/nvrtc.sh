#!/usr/bin/env bash
# Compiles the CUDA source of every spec with NVRTC for two architectures, without a GPU. NVRTC comes from the
# Python wheel nvidia-cuda-nvrtc-cu12, put into a virtual environment in the target folder. What is missing is
# said; with --require it is an error. Other arguments go to nvrtc.py. Then bpm compiles kernels with it.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never

required=
if [ "${1:-}" = "--require" ]; then
  required=1
  shift
fi
missing() {
  echo "NOT RUN: NVRTC: $1" >&2
  [ -n "$required" ] && exit 1
  exit 0
}

command -v python3 >/dev/null || missing "python3 is missing"
cargo build --locked -p bpm-compiler
folder=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
environment="$folder/nvrtc"
if ! "$environment/bin/python" -c "import nvidia.cuda_nvrtc" 2>/dev/null; then
  python3 -m venv "$environment" || missing "a virtual environment cannot be made"
  "$environment/bin/pip" install --quiet --disable-pip-version-check nvidia-cuda-nvrtc-cu12==12.9.86 ||
    missing "the wheel nvidia-cuda-nvrtc-cu12 cannot be installed"
fi
"$environment/bin/python" tests/nvrtc.py "$folder/debug/bpmc" "$@"
# The way on which bpm itself compiles kernels.
wheel=$("$environment/bin/python" -c "import nvidia.cuda_nvrtc as w; print(next(iter(w.__path__)))")
LD_LIBRARY_PATH="$wheel/lib:${LD_LIBRARY_PATH:-}" cargo test --locked -q -p bpm-runtime --lib engine::device::nvrtc
