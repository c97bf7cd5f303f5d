"""One network on several ranks (diffusers' Ulysses context parallelism), here two processes on the CPU."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import ContextParallelConfig

from model.checkpoints.official_names import dit_config
from model.transformer import CoInteractTransformer3DModel
from tests.model.golden import TINY_DIT

RANKS = 2


def run_rank(rank: int, folder: str, rows: int) -> None:
    torch.set_num_threads(1)
    # diffusers counts accelerators to place a rank; a machine without any has to count as one.
    torch.accelerator.device_count = lambda: 1
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    settings = {**dit_config(TINY_DIT, hoi_branch=True), "num_layers": 2, "audio_inject_layers": (0, 1)}
    transformer = CoInteractTransformer3DModel(**settings).eval()
    size = (2 * rows, 8)
    inputs = {
        "person_latents": torch.randn(1, 16, 1, *size),
        "product_latents": torch.randn(1, 16, 1, *size),
        "motion_latents": torch.randn(1, 16, 19, *size),
        "pose_latents": torch.randn(1, 16, 3, *size),
        "encoder_hidden_states": torch.randn(1, 5, 64),
        "audio_embeds": torch.randn(1, 25, 32, 12),
        "hoi_latents": torch.randn(1, 16, 3, *size),
        "hoi_encoder_hidden_states": torch.randn(1, 5, 64),
    }
    target = torch.randn(1, 16, 3, *size)
    with torch.no_grad():
        alone = transformer(target, 500, **inputs)
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))
        shared = transformer(target, 500, **inputs)
    torch.save(
        {
            "sample": (shared.sample - alone.sample).abs().max(),
            "hoi_sample": (shared.hoi_sample - alone.hoi_sample).abs().max(),
            "rows": shared.conditioning.layout.grid[1],
        },
        Path(folder) / f"rank{rank}.pt",
    )
    dist.destroy_process_group()


def test_two_ranks_predict_what_one_does_each_on_its_rows(tmp_path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path), 8), nprocs=RANKS)
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(RANKS)]
    for result in results:
        assert result["rows"] == 4
        assert result["sample"] < 2e-5
        assert result["hoi_sample"] < 2e-5
