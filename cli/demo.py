"""`cointeract demo`: makes a video of the sample inputs, through the HTTP API like any client."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from rich.console import Console
from rich.panel import Panel

from cli.generate import Made, generate_over_http, options_of
from cli.service import service
from contract.settings import Settings
from deploy.parts import own_command
from deploy.samples import write_samples
from deploy.stack import StackError, free_port

STACK_START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
SERVE_POLL_S = 2.0
DEMO_SEED = 2604


def run_demo(output: Path, url: str | None, api_key: str | None, serve: bool, console: Console) -> None:
    """Write the samples, post them, save OUTPUT/presenter.mp4. Without `url`, start a stack for it; with
    `serve`, keep that until Ctrl-C.
    """
    began = time.monotonic()
    samples = write_samples(output / "inputs")
    console.print(f"Sample inputs: {output / 'inputs'}", highlight=False)
    options = options_of(
        {"prompt": list(samples.sentences()), "seed": DEMO_SEED},
        {"person_image": samples.person, "product_image": samples.product, "audio": samples.audio},
    )
    video = output / "presenter.mp4"
    if url is not None:
        with service(url, api_key) as client:
            made = generate_over_http(options, video, client, console)
        console.print(_ready_panel(video, made, began, studio_address(url, made)), highlight=False)
        return
    with running_stack(output / "data") as own_url, service(own_url, None) as client:
        made = generate_over_http(options, video, client, console)
        if serve:
            console.print(_ready_panel(video, made, began, studio_address(own_url, made)), highlight=False)
            _wait_until_stopped(own_url, console)
    if not serve:
        later = studio_address(f"http://127.0.0.1:{Settings.model_fields['port'].default}", made)
        studio = f"{later}\nonce `cointeract up --data {output / 'data'}` runs (or use demo --serve)"
        console.print(_ready_panel(video, made, began, studio), highlight=False)


def studio_address(url: str, made: Made) -> str:
    """The address at which the studio shows the video."""
    return f"{url.rstrip('/')}/#job={made.job_id}"


def _ready_panel(video: Path, made: Made, began: float, studio: str) -> Panel:
    took = f"{video.stat().st_size / 1e6:.1f} MB, after {time.monotonic() - began:.0f} s."
    advice = f"\n{made.caveat}\nThe real model: README.md, “Real weights”." if made.caveat else ""
    text = f"[bold]{video.resolve()}[/]\n{took}{advice}\nIn the studio: {studio}"
    return Panel(text, title="The video is ready", border_style="green", expand=False)


def _wait_until_stopped(url: str, console: Console) -> None:
    """Return at Ctrl-C, or when the service no longer answers."""
    console.print("Serving until Ctrl-C.", highlight=False)
    with suppress(KeyboardInterrupt):
        while _answers(f"{url}/healthz"):
            time.sleep(SERVE_POLL_S)


@contextmanager
def running_stack(data_dir: Path) -> Iterator[str]:
    """Run `cointeract up` in a child process. Yields its URL once it takes jobs."""
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    stack = subprocess.Popen(own_command("up", "--port", str(port), "--data", str(data_dir)))
    try:
        deadline = time.monotonic() + STACK_START_TIMEOUT_S
        while not _answers(f"{url}/readyz"):
            if stack.poll() is not None:
                raise StackError("The stack did not start; its reason is above.")
            if time.monotonic() > deadline:
                raise StackError(
                    f"The stack was not ready within {STACK_START_TIMEOUT_S:.0f} s; see {data_dir}/logs."
                )
            time.sleep(0.2)
        yield url
    finally:
        if stack.poll() is None:
            stack.send_signal(signal.SIGTERM)
            try:
                stack.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                stack.kill()
                stack.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False
