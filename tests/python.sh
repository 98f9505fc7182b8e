#!/usr/bin/env bash
# Builds the Python package as a wheel, installs it into a virtual environment in the target folder, and runs its
# tests and its example with NumPy alone. Tests with PyTorch run where BPM_TORCH names a Python that has it. Tests of a
# device are those of the emulated one, which needs a C++ compiler; BPM_TEST_DEVICE=cuda takes a GPU in its place.
# What is missing is said; with --require it is an error.
subject="Python"
. "$(dirname "$0")/begin.sh"
takes_no_arguments

command -v python3 >/dev/null || missing "python3 is missing"
python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" || missing "python3 is older than 3.11"
environment="$folder/python"
export BPM_CACHE="$folder/kernels"
if ! "$environment/bin/python" -c "import maturin, numpy" 2>/dev/null; then
  python3 -m venv "$environment" || missing "a virtual environment cannot be made"
  "$environment/bin/pip" install --quiet --disable-pip-version-check maturin==1.16.0 numpy ||
    missing "maturin and numpy cannot be installed"
fi

# The profile of the other tests, so that what they compiled is not compiled again.
rm -rf "$folder/wheels"
"$environment/bin/maturin" build --quiet --profile dev --strip true --compatibility linux --manifest-path python/Cargo.toml --out "$folder/wheels"
"$environment/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$folder"/wheels/*.whl
if [ -x "$folder/debug/bpm" ]; then
  export BPM_PROGRAM="$folder/debug/bpm"
else
  echo "NOT RUN: Python beside bpm run: $folder/debug/bpm is not built (cargo build -p bpm-runtime)" >&2
fi

run() {
  local python=$1
  # -P: the folder torch/ of this project is no PyTorch.
  "$python" -P -m unittest discover --start-directory python/tests
  "$python" -P examples/python/associative_recall.py --quick
}
echo "Python with NumPy"
run "$environment/bin/python"
if [ -n "${BPM_TORCH:-}" ]; then
  echo "Python with PyTorch"
  PYTHONPATH=$(echo "$environment"/lib/python3*/site-packages/) run "$BPM_TORCH"
else
  echo "NOT RUN: Python with PyTorch: BPM_TORCH=/path/to/python names one that has it"
fi
