"""From GPT-2 to LLaMA, one change at a time, on a CPU; writes docs/study-cpu.md.

python scripts/study_cpu.py
python scripts/study_cpu.py --workers=8 --out_dir=/tmp/study

Trains the missing runs with sweep.py (2.2 hours of run time, two at a time), then writes the report
and its plots. Every number and verdict in the report is computed from the runs.

Exit status: 0 written, 2 some runs did not finish.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.runs import run_script
from scripts.study import Study, run_study

STUDY = Study(
    name="study-cpu",
    arguments=(
        *("config/arch_gpt2.py", "config/run_study_cpu.py"),
        *("--vary", "position_encoding=rope"),
        *("--vary", "normalization=rmsnorm"),
        *("--vary", "activation=silu"),
        *("--vary", "ffn_type=swiglu"),
        *("--vary", "bias=False"),
        *("--vary", "weight_tying=False"),
        *("--arms", "config/arch_llama.py"),
        *("--tune", "learning_rate=1.4e-3,2e-3,2.8e-3,4e-3,5.6e-3,8e-3,1.13e-2,1.6e-2"),
        *("--until_sure", "--max_seeds=10"),
    ),
    introduction="""\
# From GPT-2 to LLaMA, one change at a time

Which of the changes from GPT-2 to LLaMA lower the loss at equal parameters and training tokens?
This study makes them one at a time on a very small model, tunes the learning rate of each, and
trains several seeds on a CPU. `python scripts/study_cpu.py` reproduces it and writes this page;
every number, verdict and plot is computed from the runs.
""",
    baseline="GPT-2",
    limits="""\
- **Changes.** A position encoding may matter more with a longer context, a gated FFN or RMSNorm
  only in deeper models, and gains early in training may vanish later.""",
)
"""Six changes from GPT-2 to LLaMA, one at a time, and LLaMA itself."""


def main(argv: Sequence[str]) -> int:
    return run_study(STUDY, __doc__, argv)


if __name__ == "__main__":
    run_script(main)
