"""GRPO on exams that an OpenEnv server holds; every rollout is a session of its own. Begins with what trl_train.py taught.

python -m server.app --port 8000 --num-tasks 3 --sessions 16    # in examples/integrations/openenv_exam
python examples/integrations/trl_openenv.py http://127.0.0.1:8000 runs/trl/sft runs/trl/openenv
"""

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from roi_env.integrations.openenv import Exam
from roi_env.integrations.trl import ExamTools, exam_rows

url, start, out = sys.argv[1:4]
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 30
common = {"report_to": [], "use_cpu": True, "bf16": False, "save_strategy": "no", "logging_steps": 1}
common |= {"disable_tqdm": True, "gradient_checkpointing": False, "lr_scheduler_type": "constant"}
grpo = GRPOConfig(out, max_steps=steps, learning_rate=1e-3, per_device_train_batch_size=16, **common)
grpo.num_generations, grpo.max_completion_length, grpo.scale_rewards = 8, 256, "batch"
trainer = GRPOTrainer(
    AutoModelForCausalLM.from_pretrained(start),
    None,
    grpo,
    Dataset.from_list(exam_rows(2048)),
    processing_class=AutoTokenizer.from_pretrained(start, padding_side="left"),
    environment_factory=lambda: ExamTools(Exam(url, seed=1)),
)
trainer.train()
trainer.model.save_pretrained(out)
trainer.processing_class.save_pretrained(out)
