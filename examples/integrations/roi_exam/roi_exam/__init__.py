"""The taskset and environment ``roi-exam`` of verifiers: ``vf-eval roi-exam --model MODEL --client.base-url URL``."""

from roi_env.integrations.verifiers import ROIExamEnv, ROIExamTaskset

__all__ = ["ROIExamEnv", "ROIExamTaskset"]
