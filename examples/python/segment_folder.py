"""Run the command line over a folder, and read its results as JSON lines.

python examples/python/segment_folder.py examples "the green van" "the yellow cat"
"""

import json
import subprocess
import sys

folder, *expressions = sys.argv[1:]
command = [sys.executable, "-m", "rism", "run", folder, "--jsonl", "--quiet"]
for expression in expressions:
    command += ["--expression", expression]

with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
    assert run.stdout is not None
    for line in run.stdout:  # one line for each image and expression, as soon as it is known
        result = json.loads(line)
        if "error" in result:
            print(f"{result['image']}: {result['error']}")
        elif result["reason"] is not None:
            print(f"{result['image']} {result['expression']!r}: nothing, {result['reason']}")
        else:
            print(f"{result['image']} {result['expression']!r}: box {result['box_xyxy']}")
sys.exit(run.returncode)
