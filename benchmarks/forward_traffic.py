"""Bytes that one transformer forward moves outside its matrix products, and its launches, at full size.

    python benchmarks/forward_traffic.py [--json]

Counted without a GPU (`model/bench/counting.py`): the real network runs in bf16 on tensors without data.
`cointeract bench` counts the same for a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model.bench.clip import OFFICIAL_SHAPES
from model.bench.counting import count_on, model_without_data
from model.bench.forward import MEASURED_TIMESTEPS
from model.checkpoints.official_names import dit_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="all operations, as JSON")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model_without_data(dit_config({}, hoi_branch=False), torch.bfloat16)
        for shape in reversed(OFFICIAL_SHAPES):
            for timestep in MEASURED_TIMESTEPS:
                counts = count_on(model, shape, timestep)
                figures[f"{shape.size} t={timestep:g}"] = {
                    "tokens": counts.tokens,
                    "launches": counts.launches.total(),
                    "gigabytes": round(counts.bytes.total() / 1e9, 1),
                    "operations": {
                        name: [counts.launches[name], round(size / 1e9, 1)]
                        for name, size in counts.bytes.most_common()
                    },
                }
    if arguments.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    sys.stdout.write("| one forward | tokens | launches | elementwise traffic |\n|---|---|---|---|\n")
    for label, found in figures.items():
        sys.stdout.write(
            f"| {label} | {found['tokens']:,} | {found['launches']:,} | {found['gigabytes']:,} GB |\n"
        )


if __name__ == "__main__":
    main()
