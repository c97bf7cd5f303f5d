from __future__ import annotations

import av

from tests.faults.conftest import StackFactory


def test_a_job_goes_from_folder_to_video_through_real_processes(make_stack: StackFactory) -> None:
    stack = make_stack(media=True)
    stack.start_reaper()
    stack.start_worker()
    job_id = stack.submit(num_clips=2)
    job = stack.wait(job_id)

    assert (job.attempt, len(job.clips)) == (1, 2)
    stack.content(job_id, job.video)
    stack.content(job_id, job.poster)
    assert job.video is not None
    with av.open(str(stack.path(job_id, job.video))) as container:
        assert container.streams.video[0].frames == 140
        assert len(container.streams.audio) == 1
    assert stack.queue.depth() == 0
