"""Progress speaks of finished work, on a device that is behind the host."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from contract.job import Stage
from model.pace import Pace

GPU = torch.device("cuda")


@dataclass
class SlowDevice:
    """A device that does nothing until it is waited for."""

    queued: int = 0
    finished: int = 0
    reported: list[tuple[Stage, int, int]] = field(default_factory=list)

    def queue_work(self) -> None:
        self.queued += 1

    def mark(self, device: torch.device) -> _Mark:
        assert device == GPU
        return _Mark(self, self.queued)

    def on_progress(self, stage: Stage, clip: int, step: int) -> None:
        assert step <= self.finished  # it is true when it is said
        self.reported.append((stage, clip, step))


@dataclass
class _Mark:
    device: SlowDevice
    place: int

    def synchronize(self) -> None:
        self.device.finished = max(self.device.finished, self.place)


def test_the_host_is_at_most_one_step_ahead_and_every_step_is_reported_once_it_is_done() -> None:
    device = SlowDevice()
    pace = Pace(device.on_progress, GPU, device.mark)
    pace.report(Stage.DENOISING, 0, 0)
    for step in range(1, 5):
        device.queue_work()
        pace.report(Stage.DENOISING, 0, step)
        assert device.queued - device.finished <= 1
        assert device.reported[-1] == (Stage.DENOISING, 0, step - 1)
    pace.catch_up()
    assert device.reported == [(Stage.DENOISING, 0, step) for step in range(5)]
    assert device.finished == device.queued


def test_a_cancel_comes_out_of_the_next_report_with_at_most_one_step_queued() -> None:
    device = SlowDevice()

    def cancel_at_two(stage: Stage, clip: int, step: int) -> None:
        device.on_progress(stage, clip, step)
        if step == 2:
            raise InterruptedError

    pace = Pace(cancel_at_two, GPU, device.mark)

    def denoise() -> None:
        for step in range(1, 9):
            device.queue_work()
            pace.report(Stage.DENOISING, 0, step)

    with pytest.raises(InterruptedError):
        denoise()
    assert (device.finished, device.queued) == (2, 3)


def test_on_a_cpu_catching_up_has_nothing_to_report() -> None:
    device = SlowDevice(finished=9)
    pace = Pace(device.on_progress, torch.device("cpu"), device.mark)
    pace.report(Stage.DECODING, 1, 3)
    assert device.reported == [(Stage.DECODING, 1, 3)]
    pace.catch_up()
    Pace(None, GPU, device.mark).catch_up()
    assert len(device.reported) == 1
