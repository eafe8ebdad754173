"""GRPO on exams with TRL: the packaged small model learns which level each task deserves under one budget.

python examples/integrations/trl_train.py runs/trl    # then compare both on other exams, see docs/integrations.md
"""

import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl_model import base_model

from roi_env.integrations.text_exam import TextExam
from roi_env.integrations.trl import exam_rows, exam_tools, example_conversations

out, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 30
exams = {"family": "signal", "num_tasks": 3, "budget": 0.3, "preview": False}
common = {"report_to": [], "use_cpu": True, "bf16": False, "save_strategy": "no", "logging_steps": 1}
common |= {"disable_tqdm": True, "gradient_checkpointing": False, "lr_scheduler_type": "constant"}

model, tokenizer = base_model()
taught = Dataset.from_list(
    example_conversations(TextExam(seed=2, **exams), 800)
)  # the form of calls, decided at random
sft = SFTConfig(f"{out}/sft", num_train_epochs=1, learning_rate=4e-3, per_device_train_batch_size=8, **common)
sft.assistant_only_loss = True
SFTTrainer(model, args=sft, train_dataset=taught, processing_class=tokenizer).train()
model.save_pretrained(f"{out}/sft")
tokenizer.save_pretrained(f"{out}/sft")

grpo = GRPOConfig(f"{out}/grpo", max_steps=steps, learning_rate=1e-3, per_device_train_batch_size=32, **common)
grpo.num_generations, grpo.max_completion_length, grpo.scale_rewards = 8, 256, "batch"
rows = Dataset.from_list(exam_rows(2048))
factory = exam_tools(seed=1, **exams)
trainer = GRPOTrainer(model, None, grpo, rows, processing_class=tokenizer, environment_factory=factory)
trainer.train()
model.save_pretrained(f"{out}/grpo")
tokenizer.save_pretrained(f"{out}/grpo")
