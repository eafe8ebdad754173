"""verifiers' evaluation command on exams of the packaged questions; prints what became of every exam.

pip install 'roi-reasoning[verifiers]' examples/integrations/roi_exam
python examples/integrations/verifiers_eval.py http://127.0.0.1:8000/v1 MODEL --env.taskset.budget 400
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

endpoint, model, *options = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    command = [
        "vf-eval",
        "roi-exam",
        "--model",
        model,
        "--client.base-url",
        endpoint,
        "--client.api-key-var",
        "EXAM_KEY",
    ]
    command += ["-n", "5", "-r", "1", "--no-push", "--no-rich", "--output-dir", folder, *options]
    environment = {**os.environ, "EXAM_KEY": os.environ.get("EXAM_KEY", "-")}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    (file,) = Path(folder).rglob("traces.jsonl")
    traces = [trace for line in file.read_text().splitlines() for trace in json.loads(line)["traces"]]
for trace in traces:
    data, exam = trace["task"]["data"], trace["info"]["exam"]
    rewards = {name: reward["score"] for name, reward in trace["rewards"].items()}
    print(f"{data['name']}: {rewards}, costs {exam['costs']} of {data['budget']}, right {exam['right']}")
