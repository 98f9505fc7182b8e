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

benches/peers/empty.sh "$venv/empty"
echo "Now: taskset -c 1 $venv/bin/python benches/peers/compare.py"
