#!/usr/bin/env bash
# Compiles the CUDA source of every spec with NVRTC for two architectures, without a GPU. NVRTC comes from the
# Python wheel nvidia-cuda-nvrtc-cu12, put into a virtual environment in the target folder. What is missing is
# said; with --require it is an error. Other arguments go to nvrtc.py. Then bpm compiles kernels with it.
subject="NVRTC"
. "$(dirname "$0")/begin.sh"

command -v python3 >/dev/null || missing "python3 is missing"
cargo build --locked -p bpm-compiler
environment="$folder/nvrtc"
if ! "$environment/bin/python" -c "import nvidia.cuda_nvrtc" 2>/dev/null; then
  python3 -m venv "$environment" || missing "a virtual environment cannot be made"
  "$environment/bin/pip" install --quiet --disable-pip-version-check nvidia-cuda-nvrtc-cu12==12.9.86 ||
    missing "the wheel nvidia-cuda-nvrtc-cu12 cannot be installed"
fi
"$environment/bin/python" tests/nvrtc.py "$folder/debug/bpmc" ${arguments[@]+"${arguments[@]}"}
# The way on which bpm itself compiles kernels.
wheel=$("$environment/bin/python" -c "import nvidia.cuda_nvrtc as w; print(next(iter(w.__path__)))")
LD_LIBRARY_PATH="$wheel/lib:${LD_LIBRARY_PATH:-}" cargo test --locked -q -p bpm-runtime --lib engine::device::nvrtc
