"""Tests compute on the CPU wherever they run, for they compare bits; those of tests/test_cuda.py alone may see a GPU."""

import os

if "ROI_CUDA" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
