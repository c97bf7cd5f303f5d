"""Compares this code with the official one on recorded cases, one JSON line each.

    python -m model.parity --weights WEIGHTS.safetensors --cases CASES.safetensors
    python -m model.parity --checkpoint FOLDER --cases CASES.safetensors

Exit status: 0 if every case is within its limit, 1 if one is not, 2 if the files cannot be compared.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from model.checkpoints.load import load_pipeline
from model.parity import component_cases, dit_cases, pipeline_cases
from model.parity.result import CaseResult


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def run(cases_file: Path, weights_file: Path | None, checkpoint: Path | None) -> Iterator[CaseResult]:
    """Load what the cases ask for and compare them one by one."""
    cases, metadata = read(cases_file)
    if dit_cases.is_dit_case(cases):
        if checkpoint is not None:
            transformer = dit_cases.load_checkpoint(checkpoint)
        else:
            transformer = dit_cases.load_weights(*read(_required(weights_file)))
        yield from dit_cases.run_dit_cases(transformer, cases)
    elif pipeline_cases.is_pipeline_case(cases):
        if checkpoint is not None:
            pipeline = load_pipeline(checkpoint)
        else:
            pipeline = pipeline_cases.build_pipeline(*read(_required(weights_file)))
        yield from pipeline_cases.run_pipeline_cases(pipeline, cases, metadata)
    elif component_cases.is_component_case(cases):
        weights = None if weights_file is None else read(weights_file)
        yield from component_cases.run_component_cases(cases, metadata, weights, checkpoint)
    else:
        raise ValueError(f"{cases_file.name} holds no cases of a known kind")


def _required(weights_file: Path | None) -> Path:
    if weights_file is None:
        raise ValueError("these cases need --weights or --checkpoint")
    return weights_file


def main(arguments_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.parity", description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", type=Path, help="official tensors, settings in the file's metadata")
    source.add_argument("--checkpoint", type=Path, help="a converted checkpoint folder")
    parser.add_argument("--cases", type=Path, required=True, help="recorded inputs and outputs")
    arguments = parser.parse_args(arguments_line)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    passed = True
    try:
        for result in run(arguments.cases, arguments.weights, arguments.checkpoint):
            sys.stdout.write(result.line() + "\n")
            sys.stdout.flush()
            passed = passed and result.passed
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        parser.exit(2, f"{parser.prog}: {message}\n")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
