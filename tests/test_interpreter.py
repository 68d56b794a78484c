"""The zoo's generated Triton kernels, forward and backward, under Triton's interpreter against the oracle.

The interpreter must be asked for before Triton is imported: without ``TRITON_INTERPRET=1`` this file runs itself
with it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from compare import compare
from test_strategies import cases, zoo_op

from recur.runtime.load import triton_interprets

if triton_interprets():

    @pytest.mark.parametrize(("name", "strategy"), cases())
    def test_kernels_against_oracle(name: str, strategy: str) -> None:
        compare(zoo_op(name), strategy, "triton", B=1, T=19, H=2, dtype=torch.float32, tolerance=2e-4)

else:

    @pytest.mark.slow
    def test_kernels_in_a_process_with_the_interpreter() -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-x", __file__]
        result = subprocess.run(
            command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout[-4000:]
