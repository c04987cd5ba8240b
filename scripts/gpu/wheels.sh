#!/usr/bin/env bash
# Fetch what an offline GPU machine needs beside its own torch (with CUDA), numpy and nvcc: pure-Python and x86-64 wheels.
#   scripts/gpu/wheels.sh FOLDER [PYTHON_VERSION]      on a machine with an index; then take FOLDER along
set -euo pipefail
folder=${1:?usage: wheels.sh FOLDER [PYTHON_VERSION]}
version=${2:-3.12}
mkdir -p "$folder"
python -m pip download --quiet --dest "$folder" --no-deps --only-binary=:all: \
    --python-version "$version" --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --platform any \
    "gsplat>=1.5.3" accelerate safetensors huggingface_hub numba llvmlite plyfile tyro shtab docstring_parser typeguard \
    jaxtyping wadler_lindig kornia kornia_rs imageio imageio-ffmpeg opencv-python-headless pillow rich pyyaml psutil packaging \
    tensorboard tensorboard-data-server protobuf markdown werkzeug absl-py grpcio viser msgspec websockets
du -sh "$folder"
