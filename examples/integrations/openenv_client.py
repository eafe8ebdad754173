"""Two sessions at one exam server, at the same time: the same exam, once thinking hard, once sparing tokens.

python -m server.app --port 8000    # in examples/integrations/openenv_exam
python examples/integrations/openenv_client.py http://127.0.0.1:8000
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from roi_env.integrations.openenv import Exam


def take(level: int) -> tuple[float, int]:
    """Mean score and tokens of twenty exams, all tasks at one level."""
    exam = Exam(sys.argv[1])
    score = spent = 0.0
    for exam_id in range(20):
        exam.begin(exam_id)
        while not exam.done:
            exam.attempt(level)
        score, spent = score + exam.score / 20, spent + (exam.budget - exam.remaining) / 20
    exam.close()
    return score, round(spent)


with ThreadPoolExecutor(2) as pool:
    for level, (score, spent) in zip((3, 2), pool.map(take, (3, 2)), strict=True):
        print(f"always level {level}: mean score {score:.2f}, {spent} tokens")
