#!/usr/bin/env bash
# The runtime's tests with the runtime alone installed, and what tests themselves need, on every
# Python from 3.11 to 3.14 that is on the PATH or pyenv's. Others by their paths:
#   tests/lean.sh /opt/python/bin/python3.14
# Files that test the other half, or what needs more, are left out by name.
set -uo pipefail
cd "$(dirname "$0")/.."

pythons=("$@")
if [ $# -eq 0 ]; then
  for minor in 11 12 13 14; do
    python=$(command -v "python3.$minor")
    own=$(ls -d ~/.pyenv/versions/3."$minor".*/bin/python 2>/dev/null | tail -n 1)
    if "${own:-$python}" -c '' 2>/dev/null; then
      pythons+=("${own:-$python}")
    else
      echo "python3.$minor is not here"
    fi
  done
fi

failed=0
for python in "${pythons[@]}"; do
  version=$("$python" -c 'import platform; print(platform.python_version())') || exit 1
  place=build/lean/$version
  rm -rf "$place" build/lib build/bdist.*
  # Their own packages are what is tested, so the newest that pip takes for this Python.
  if "$python" -m venv "$place" && "$place/bin/pip" install -q ".[cpu]" pytest onnx pycocotools &&
    "$place/bin/python" -m pytest -q -p no:cacheprovider -m "not gpu" tests/runtime tests/cli \
      --ignore tests/runtime/engines/test_bound_weights.py --ignore tests/runtime/engines/test_onnxruntime_cuda.py \
      --ignore tests/cli/test_eval.py --ignore tests/cli/test_export.py \
      --ignore tests/cli/test_export_triton.py \
      >"$place/log" 2>&1; then
    result=passes
  else
    result="FAILS, see $place/log"
    failed=1
  fi
  echo "Python $version $result: $(tail -n 1 "$place/log")"
done
exit $failed
