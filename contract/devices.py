"""Names of devices, as the command line takes them: one worker renders on one or several."""

from __future__ import annotations

CPU_NAME = "cpu"
SEPARATOR = ","


def parse_devices(text: str) -> tuple[str, ...]:
    """`0,1` or `cuda:0,cuda:1` → ("cuda:0", "cuda:1"); `cpu,cpu` → two processes on the CPU.

    Raises:
        ValueError: a name that is none, CPU and GPU together, or one GPU twice.
    """
    names = tuple(_parse_device(part.strip()) for part in text.split(SEPARATOR))
    gpus = [name for name in names if name != CPU_NAME]
    if gpus and len(gpus) < len(names):
        raise ValueError(f"devices {text!r} mix CPU and GPU; a worker renders on one kind")
    doubled = sorted({name for name in gpus if gpus.count(name) > 1})
    if doubled:
        raise ValueError(
            f"devices {text!r} name {', '.join(doubled)} twice; each rank needs a GPU of its own"
        )
    return names


def _parse_device(name: str) -> str:
    if name == CPU_NAME:
        return name
    number = "0" if name == "cuda" else name.removeprefix("cuda:")
    if not number.isdecimal():
        raise ValueError(f"{name!r} is no device: give cpu, cuda, cuda:N or N, several with commas")
    return f"cuda:{int(number)}"
