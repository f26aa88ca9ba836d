#!/usr/bin/env bash
# Writes the lock files anew: each package's newest version within pyproject.toml's bounds, with the
# hashes of its files. All files agree on a version. Run by `make locks`.
set -euo pipefail
cd "$(dirname "$0")/.."
trtllm=tests/data/trtllm/requires-dist.txt

compile() { # FILE OPTION...: resolves for every platform and Python, unless the options say otherwise
  local file=$1
  shift
  echo "locks/$file" >&2
  uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-annotate \
    --custom-compile-command 'make locks' --output-file "locks/$file" --constraint constraints.txt "$@"
}
names() { sed -nE 's/^([a-z0-9._-]+)==.*/\1/p' "$@" | sort -u; }
left_out() { for name in "$@"; do printf -- '--no-emit-package %s ' "$name"; done; }

everywhere=(--universal --python-version 3.10)
everything=$(mktemp)
vendors=$(mktemp)
trap 'rm -f "$everything" "$vendors"' EXIT

# What torch brings comes from where its build comes from (a GPU's or a CPU's), so its hashes are in
# a file of their own.
uv pip compile --quiet --no-annotate "${everywhere[@]}" -c constraints.txt \
  pyproject.toml --extra dev --output-file "$everything"
of_torch=$(names "$everything" | grep -E '^(torch|triton|nvidia-.*|cuda-.*)$')
# shellcheck disable=SC2046 # words
without_torch() { compile "$@" "${everywhere[@]}" --constraint "$everything" $(left_out $of_torch); }

without_torch build.txt - <<< $'hatchling\neditables'
without_torch dev.txt pyproject.toml --extra dev
without_torch demo.txt pyproject.toml --extra demo
without_torch test.txt pyproject.toml --extra test
without_torch gateway.txt pyproject.toml --extra otel
without_torch models.txt pyproject.toml --extra torch --extra otel
# shellcheck disable=SC2046
compile torch.txt "${everywhere[@]}" --constraint "$everything" pyproject.toml --extra torch \
  $(left_out $(names locks/models.txt))

# NVIDIA's image has TensorRT-LLM and whatever that requires. Our packages go beside it in versions
# that all of that goes with; what the image must keep as it is stays out.
linux=(--python-version 3.12 --python-platform x86_64-manylinux_2_28)
grep -viE '^(#|mpi4py|nvidia-modelopt|tensorrt|onnx_graphsurgeon|polygraphy)' "$trtllm" \
  | uv pip compile --quiet --no-annotate "${linux[@]}" - pyproject.toml --extra build --extra otel \
    --output-file "$vendors"
held=$(names "$vendors" | grep -E '^(torch|triton|nvidia-.*|cuda-.*|numpy|llguidance|setuptools|sympy|networkx|mpmath|jinja2|markupsafe|filelock|fsspec)$')
# Not constraints.txt: the image's torch is another one.
uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate \
  --custom-compile-command 'make locks' "${linux[@]}" --constraint "$vendors" \
  $(left_out $held) pyproject.toml --extra build --extra otel \
  --output-file locks/tensorrt.txt
