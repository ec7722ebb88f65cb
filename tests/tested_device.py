"""The device of the golden files and of the small training runs: ``TORCHRL_WM_TEST_DEVICE``, or the CPU."""

import os

DEVICE = os.environ.get("TORCHRL_WM_TEST_DEVICE", "cpu")
