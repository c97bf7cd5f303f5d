"""The transformer against the official code's recorded numbers, through the command that users run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.official_names import is_hoi_name
from model.parity.__main__ import main
from model.parity.dit_cases import build_transformer, parse_case
from tests.model.golden import TINY_DIT, official_dit_shapes, official_weights

pytestmark = pytest.mark.slow

CASES = Path(__file__).parent.parent / "data" / "dit_tiny_cases.safetensors"
OUTPUTS = 14


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return official_weights(official_dit_shapes(TINY_DIT, hoi_branch=True), seed=0)


@pytest.fixture(scope="module")
def weights(official, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dit.safetensors"
    save_file(official, path, metadata={"config": json.dumps(TINY_DIT)})
    return path


def parity(capsys, *arguments: object) -> tuple[int, dict[str, dict]]:
    status = main([str(argument) for argument in arguments])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return status, {line["case"]: line for line in lines}


def changed_cases(path: Path, change) -> Path:
    cases = load_file(CASES)
    change(cases)
    save_file(cases, path)
    return path


def test_every_recorded_output_is_met_within_a_hundredth_of_the_limit(weights, capsys) -> None:
    status, results = parity(capsys, "--weights", weights, "--cases", CASES)
    assert status == 0
    assert len(results) == OUTPUTS
    assert max(result["max_abs_diff"] for result in results.values()) < 1e-5
    assert min(result["max_abs_ref"] for result in results.values()) > 1


def test_weights_without_the_hoi_branch_meet_every_output_that_does_not_need_it(
    official, tmp_path, capsys, caplog
) -> None:
    path = tmp_path / "pruned.safetensors"
    pruned = {name: tensor for name, tensor in official.items() if not is_hoi_name(name)}
    save_file(pruned, path, metadata={"config": json.dumps(TINY_DIT)})
    status, results = parity(capsys, "--weights", path, "--cases", CASES)
    assert status == 0
    assert len(results) == OUTPUTS - 3
    assert "hoi_asymmetric_t500.rgb" in results
    assert "hoi_mutual_t500" in caplog.text


def test_a_checkpoint_folder_is_compared_like_its_weights(official, tmp_path, capsys) -> None:
    build_transformer(official, TINY_DIT).save_pretrained(tmp_path / "transformer")
    status, results = parity(capsys, "--checkpoint", tmp_path, "--cases", CASES)
    assert status == 0
    assert len(results) == OUTPUTS


def test_one_output_beyond_its_limit_fails_the_command(weights, tmp_path, capsys) -> None:
    def off_by_a_little(cases: dict[str, torch.Tensor]) -> None:
        cases["out.plain_t500.rgb"][0, 3, 1, 2, 5] += 2e-4

    status, results = parity(
        capsys, "--weights", weights, "--cases", changed_cases(tmp_path / "off.safetensors", off_by_a_little)
    )
    assert status == 1
    assert [name for name, result in results.items() if not result["passed"]] == ["plain_t500.rgb"]


def test_a_recorded_nan_fails_the_command(weights, tmp_path, capsys) -> None:
    def broken(cases: dict[str, torch.Tensor]) -> None:
        cases["out.product_t500.rgb"].fill_(float("nan"))

    status, _ = parity(
        capsys, "--weights", weights, "--cases", changed_cases(tmp_path / "nan.safetensors", broken)
    )
    assert status == 1


def test_a_file_without_product_or_motion_is_compared_by_what_it_has(weights, tmp_path, capsys) -> None:
    def plain_only(cases: dict[str, torch.Tensor]) -> None:
        recorded = cases["out.plain_t500.rgb"]
        for name in list(cases):
            if name.startswith("out.") or name in ("in.product_latents", "in.motion_latents"):
                del cases[name]
        cases["out.plain_t500.rgb"] = recorded
        # Nothing named and nothing there: the same network call.
        cases["out.pruned_t500.rgb"] = recorded.clone()

    status, results = parity(
        capsys, "--weights", weights, "--cases", changed_cases(tmp_path / "few.safetensors", plain_only)
    )
    assert status == 0
    assert set(results) == {"plain_t500.rgb", "pruned_t500.rgb"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("out.plain_t500.rgb", "out.depth_t500.rgb", "unknown part at 'depth'"),
        ("out.plain_t500.rgb", "out.plain.rgb", "does not end in _t<timestep>"),
        ("in.product_latents", "in.unknown", "needs in.product_latents"),
        ("in.latents", "in.unknown", "no cases of a known kind"),
    ],
)
def test_files_that_cannot_be_compared_are_refused_with_a_reason(
    weights, tmp_path, capsys, old, new, message
) -> None:
    path = changed_cases(tmp_path / "odd.safetensors", lambda cases: cases.update({new: cases.pop(old)}))
    with pytest.raises(SystemExit) as exit_status:
        main(["--weights", str(weights), "--cases", str(path)])
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["head.head.bias", "blocks.2.ffn.face_expert.fc2.weight", "audio_injector.injector.2.k.bias"]
)
def test_a_missing_tensor_is_named(official, tmp_path, capsys, name) -> None:
    path = tmp_path / "partial.safetensors"
    save_file(
        {key: tensor for key, tensor in official.items() if key != name},
        path,
        {"config": json.dumps(TINY_DIT)},
    )
    with pytest.raises(SystemExit) as exit_status:
        main(["--weights", str(path), "--cases", str(CASES)])
    assert exit_status.value.code == 2
    assert name.rsplit(".", 1)[1] in capsys.readouterr().err


def test_a_cases_name_says_which_conditions_it_has() -> None:
    case = parse_case("product_scale075_motion_audio_face_mask_t20.5")
    assert case.inputs == {"product", "motion"}
    assert (case.product_scale, case.audio_face_mask, case.timesteps) == (0.75, True, (20.5,))
    assert parse_case("plain_t950").inputs == frozenset()
    assert parse_case("product_scale10_t1").product_scale == 1.0
    assert parse_case("hoi_mutual_t500").hoi == "mutual"
    assert parse_case("pose_hoi_asymmetric_t500").inputs == {"pose"}
