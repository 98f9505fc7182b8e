#!/usr/bin/env bash
# Builds bpm with libtorch and compares values, gradients and training with it. libtorch comes from LIBTORCH, if that
# is set, else from the Python wheel torch, put into a virtual environment in the target folder: half a gigabyte, and
# minutes of C++. What is missing is said; with --require it is an error.
subject="libtorch"
. "$(dirname "$0")/begin.sh"
takes_no_arguments

command -v c++ >/dev/null || missing "a C++ compiler is missing"
if [ -z "${LIBTORCH:-}" ]; then
  command -v python3 >/dev/null || missing "python3 is missing, and LIBTORCH is not set"
  version=$(sed -n 's/^const WANTED: &str = "\(.*\)";$/\1/p' torch/build.rs)
  environment="$folder/libtorch"
  if ! "$environment/bin/pip" show torch 2>/dev/null | grep -q "^Version: $version"; then
    python3 -m venv "$environment" || missing "a virtual environment cannot be made"
    # Of all that the wheel wants, libtorch on a processor needs these two.
    "$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps \
      "torch==$version" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 ||
      missing "the wheel torch $version cannot be installed"
  fi
  site=$("$environment/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
  export LIBTORCH="$site/torch" LIBTORCH_CXX11_ABI=1
  export LD_LIBRARY_PATH="$site/torch/lib:$site/nvidia/cu13/lib:${LD_LIBRARY_PATH:-}"
fi
[ -d "$LIBTORCH/lib" ] || missing "LIBTORCH is $LIBTORCH, which has no libraries"

with=(--locked -p bpm -p bpm-runtime -p bpm-torch --features bpm-runtime/torch)
cargo clippy "${with[@]}" --all-targets -- -D warnings
cargo test "${with[@]}" -q --test libtorch --test operations --test random_specs
# Those of its tests that have the word in their names: others need no libtorch, and some take its place in
# LD_LIBRARY_PATH.
cargo test "${with[@]}" -q --test devices libtorch
cargo test "${with[@]}" -q --lib exact
