#!/usr/bin/env bash
# Runs bpm on processors that this machine does not have, under emulators, and compares bits: its kernels
# with the loop IR, its outputs and gradients with this machine's. Needs x86-64 with Linux, qemu-user, a C
# cross-compiler for AArch64, and Rust's standard library for it. What is missing is said; with --require
# it is an error.
subject="other processors"
. "$(dirname "$0")/begin.sh"
takes_no_arguments

target=aarch64-unknown-linux-gnu
libraries=/usr/aarch64-linux-gnu
lacks=()
[ "$(uname -sm)" = "Linux x86_64" ] || lacks+=("x86-64 with Linux")
for tool in qemu-x86_64 qemu-aarch64 aarch64-linux-gnu-gcc; do
  command -v "$tool" >/dev/null || lacks+=("$tool")
done
[ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || lacks+=("the Rust target $target")
if [ ${#lacks[@]} -gt 0 ]; then
  for what in "${lacks[@]}"; do
    echo "NOT RUN: $subject: $what is missing" >&2
  done
  echo "on Debian: apt-get install qemu-user gcc-aarch64-linux-gnu; rustup target add $target" >&2
  [ -z "$required" ] || exit 1
  exit 0
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L $libraries"

echo "== kernels on AArch64"
cargo test --locked --target "$target" -p bpm-compiler --test bits -- --nocapture
echo "== kernels on x86-64 without AVX2, FMA and SSE4.1"
CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="qemu-x86_64 -cpu qemu64" \
  cargo test --locked -p bpm-compiler --test bits -- --nocapture
echo "== bpm on other processors"
cargo build --locked --target "$target" -p bpm-runtime
BPM_AARCH64="$folder/$target/debug/bpm" BPM_AARCH64_ROOT="$libraries" \
  cargo test --locked -p bpm-runtime --test processors
