#!/usr/bin/env bash
# A second opinion from PyTorch on every spec: values and gradients in double precision, compared with the fixtures
# that tests/torch.rs compares with the interpreter and with machine code. PyTorch is put into a virtual environment
# in the target folder (1.4 GB), unless benches/peers/setup.sh has made one. Then `bpm bench --against torch` runs two
# specs. What is missing is said; with --require it is an error.
subject="PyTorch"
. "$(dirname "$0")/begin.sh"
takes_no_arguments

python=${PYTHON:-python3}
command -v "$python" >/dev/null || missing "$python is missing"
[ "$(uname -s)" = Linux ] || missing "it is installed here on Linux alone"
command -v cc >/dev/null || missing "a C compiler is missing"
cargo build --workspace --locked
environment="$folder/torch"
[ -x "$folder/peers/bin/python" ] && environment="$folder/peers"
# Empty libraries stand for those for GPUs, which are loaded but never called.
libraries="$environment/empty"
wheels=$(echo "$environment"/lib/python3*/site-packages/nvidia/*/lib | tr ' ' ':')
run() {
  LD_LIBRARY_PATH="$libraries:$wheels:${LD_LIBRARY_PATH:-}" "$@"
}
imports() {
  run "$environment/bin/python" -c "import os, sys; sys.setdlopenflags(os.RTLD_LAZY); import torch" 2>/dev/null
}
if ! imports; then
  echo "Installing PyTorch in $environment"
  "$python" -m venv "$environment" || missing "a virtual environment cannot be made"
  # Of the peers, what PyTorch needs.
  grep -vE '^(#|jax|safetensors|ml-dtypes|opt-einsum|scipy|$)' benches/peers/requirements.txt >"$environment/needed.txt"
  "$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$environment/needed.txt" ||
    missing "its wheel cannot be installed"
  benches/peers/empty.sh "$libraries" || missing "empty libraries cannot be made"
  wheels=$(echo "$environment"/lib/python3*/site-packages/nvidia/*/lib | tr ' ' ':')
  imports || missing "it is installed and cannot be imported"
fi

run "$environment/bin/python" tests/torch/second_opinion.py "$folder/debug/bpmc" --check
for spec in backpropamine/retroactive zoo/stpn; do
  run "$folder/debug/bpm" bench "specs/$spec.bpm" --axis I=3 --axis A=2 --axis N=8 --batch 3 --steps 10 --repeat 1 \
    --against torch --python "$environment/bin/python"
done
