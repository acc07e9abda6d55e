"""Recent components in LLaMA, one at a time, on a CPU; writes docs/study-modern.md.

python scripts/study_modern.py
python scripts/study_modern.py --workers=8 --out_dir=/tmp/study

Trains the missing runs with sweep.py, then writes the report and its plots. Every number and
verdict in the report is computed from the runs.

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
    name="study-modern",
    arguments=(
        *("config/arch_llama.py", "config/run_study_cpu.py"),
        *("--vary", "qk_norm=True"),
        *("--vary", "attention_gate=channel"),
        *("--vary", "value_residual=learned"),
        *("--vary", "canon=abcd"),
        *("--vary", "differential_attention=True"),
        *("--vary", "forget_gate=True"),
        *("--vary", "mixer=gated_deltanet*3+attention"),
        *("--tune", "learning_rate=1e-3,1.4e-3,2e-3,2.8e-3,4e-3,5.6e-3"),
        *("--until_sure", "--max_seeds=10"),
    ),
    introduction="""\
# Recent components in LLaMA, one at a time

Which recent components lower the loss of a LLaMA model at equal parameters and training tokens?
This study adds them one at a time to a very small model, tunes the learning rate of each,
and trains several seeds on a CPU. `python scripts/study_modern.py` reproduces it and writes this
page; every number, verdict and plot is computed from the runs.
""",
    baseline="LLaMA",
    limits="""\
- **Components.** Most of them were proposed for what a model of this size does not have: stable
  training at high learning rates and great depth (QK norm, gates), long contexts (forget gates,
  differential attention, recurrent mixers). A component that is not better here may be at scale,
  and a short convolution, which relates neighboring characters, may owe its gain to this size.""",
)
"""Seven components, one at a time."""


def main(argv: Sequence[str]) -> int:
    return run_study(STUDY, __doc__, argv)


if __name__ == "__main__":
    run_script(main)
