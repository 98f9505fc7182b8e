#!/bin/sh
# Makes target/peers, a virtual environment with PyTorch and JAX for processors (2 GB).
#
# The wheel of PyTorch for Linux asks for several GB of libraries for GPUs. On a processor it loads them but
# never calls them, so that empty ones will do: compare.py puts them on the path of libraries.
set -eu
cd "$(dirname "$0")/../.."
venv=target/peers

"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --no-deps -r benches/peers/requirements.txt

mkdir -p "$venv/empty"
for name in cublas.so.13 cublasLt.so.13 cuda.so.1 cudnn.so.9 cufft.so.12 cufile.so.0 curand.so.10 \
  cusolver.so.12 cusparse.so.12 cusparseLt.so.0 nccl.so.2 nvrtc.so.13 nvshmem_host.so.3; do
  cc -shared -Wl,-soname,"lib$name" -o "$venv/empty/lib$name" -x c /dev/null
done
echo "Now: taskset -c 1 $venv/bin/python benches/peers/compare.py"
