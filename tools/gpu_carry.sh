#!/bin/sh
# Carry to a GPU machine without a network what tools/gpu_check.py needs, in two pieces of less than 64 MiB:
# packages that an image with PyTorch and transformers may lack, GSM8K, and SmolLM2-135M-Instruct (as its GGUF file).
#
#   sh tools/gpu_carry.sh pack MODEL.gguf GSM8K_FOLDER   # here: fills build/carry/1 and build/carry/2
#   sh tools/gpu_carry.sh unpack build/carry/1           # there, in the repository, for each piece as it comes
#   sh tools/gpu_carry.sh unpack build/carry/2
#
# What is unpacked lies in GPU_CHECK_DIR, or /tmp/gpu-check. TARGET names the machine's Python, 3.12 by default.
set -eu

PACKAGES="annotated-types antlr4-python3-runtime==4.13.2 beartype datasets dill gguf jaxtyping latex2sympy2-extended
  math-verify multiprocess pebble pydantic pydantic-core pydantic-monty pydantic-monty-client pydantic-monty-runtime
  text2num tomli-w trl typing-inspection"
PLACE=${GPU_CHECK_DIR:-/tmp/gpu-check}

pack() {
  rm -rf build/carry
  mkdir -p build/carry/1 build/carry/2/wheels build/carry/2/gsm8k
  platforms=
  for glibc in 28 27 24 17; do platforms="$platforms --platform manylinux_2_${glibc}_x86_64"; done
  # shellcheck disable=SC2086
  "${PYTHON:-.venv/bin/python}" -m pip download -q --no-deps --only-binary=:all: -c constraints.txt \
    --python-version "${TARGET:-3.12}" --implementation cp $platforms --platform manylinux2014_x86_64 \
    -d build/carry/2/wheels $PACKAGES
  cp "$2/train.jsonl" "$2/test.jsonl" build/carry/2/gsm8k
  gzip -c "$1" | split -b 62000000 -d -a 1 - build/carry/model.gz.
  mv build/carry/model.gz.0 build/carry/1
  mv build/carry/model.gz.* build/carry/2
  du -sb build/carry/1 build/carry/2
}

unpack() {
  mkdir -p "$PLACE"
  cp -r "$1"/. "$PLACE"
  [ -d "$1/wheels" ] || return 0  # that was the first piece
  # Into the Python that runs, for monty is a program that is looked for beside it.
  python3 -m pip install -q --no-index --no-deps --no-compile "$PLACE"/wheels/*.whl
  cat "$PLACE"/model.gz.* | gunzip > "$PLACE/model.gguf"
  PYTHONPATH=src python3 -m reftune export "$PLACE/model.gguf" --out "$PLACE/SmolLM2-135M-Instruct" --license apache-2.0
  echo "now: GPU_CHECK_MODEL=$PLACE/SmolLM2-135M-Instruct GPU_CHECK_GSM8K=$PLACE/gsm8k PYTHONPATH=src python3 tools/gpu_check.py"
}

"$@"
