#!/bin/sh
# Makes empty libraries in a folder, in place of those for GPUs that the wheel of PyTorch for Linux asks for.
set -eu
folder=$1

mkdir -p "$folder"
for name in cublas.so.13 cublasLt.so.13 cuda.so.1 cudnn.so.9 cufft.so.12 cufile.so.0 curand.so.10 \
  cusolver.so.12 cusparse.so.12 cusparseLt.so.0 nccl.so.2 nvrtc.so.13 nvshmem_host.so.3; do
  cc -shared -Wl,-soname,"lib$name" -o "$folder/lib$name" -x c /dev/null
done
