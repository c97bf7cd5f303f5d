"""The kernel filter of a decoding process: it may compute, and use files that are already open, nothing else.

It opens no files and no sockets and starts no processes, whatever a malformed file makes a codec do. A system
call that is not on the list fails with EPERM. Linux on x86-64 and arm64.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import sys
from typing import Final

from contract.processes import NOTHING, prctl

# System call numbers by machine: (x86-64, arm64), from the kernel's tables.
ALLOWED: Final[dict[str, tuple[int | None, int | None]]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "poll": (7, None),
    "ppoll": (271, 73), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "ioctl": (16, 29), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23),
    "nanosleep": (35, 101), "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "fcntl": (72, 25),
    "ftruncate": (77, 46), "getrusage": (98, 165), "sysinfo": (99, 179), "sigaltstack": (131, 132),
    "prctl": (157, 167), "gettid": (186, 178), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "set_tid_address": (218, 96), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "tgkill": (234, 131), "newfstatat": (262, 79),
    "set_robust_list": (273, 99), "getrandom": (318, 278), "membarrier": (324, 283), "rseq": (334, 293),
}  # fmt: skip
CLONE: Final = (56, 220)
CLONE3: Final = 435
CLONE_THREAD: Final = 0x00010000
AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

PR_SET_DUMPABLE: Final = 4
PR_SET_SECCOMP: Final = 22
PR_SET_NO_NEW_PRIVS: Final = 38
SECCOMP_MODE_FILTER: Final = 2

_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_FIRST_ARGUMENT = 0, 4, 16


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def supported() -> bool:
    """Whether this machine has a filter to install."""
    return sys.platform == "linux" and platform.machine() in AUDIT_ARCH


def why_unconfined() -> str | None:
    """What is missing on this machine; None if there is a filter."""
    if supported():
        return None
    return (
        f"On this machine ({platform.system()}, {platform.machine()}) nothing confines the process that "
        "decodes uploaded files: the kernel filter exists for Linux on x86-64 and arm64 only"
    )


def why_not_to_decode(allow_unconfined: bool) -> str | None:
    """The reason why files of strangers must not be decoded here, or None."""
    missing = why_unconfined()
    if missing is None or allow_unconfined:
        return None
    return (
        f"{missing}. A malformed file could then do whatever you may. Set "
        "COINTERACT_ALLOW_UNCONFINED_DECODING=true if all files come from people you trust."
    )


def _program(machine: str) -> list[tuple[int, int, int, int]]:
    column = 0 if machine == "x86_64" else 1
    program = [
        (_LOAD, 0, 0, _OFFSET_ARCH),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _OFFSET_NUMBER),
    ]
    for numbers in ALLOWED.values():
        number = numbers[column]
        if number is not None:
            program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += [
        # Codecs start threads, and CLONE_THREAD tells a thread from a process. clone3 keeps its flags in
        # memory, where a filter cannot look: it does not exist here, and the C library falls back to clone.
        (_JUMP_EQUAL, 0, 1, CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_JUMP_EQUAL, 0, 3, CLONE[column]),
        (_LOAD, 0, 0, _OFFSET_FIRST_ARGUMENT),
        (_JUMP_ANY_BIT, 0, 1, CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    return program


def _compiled() -> _Program | None:
    if not supported():
        return None
    instructions = _program(platform.machine())
    array = (_Instruction * len(instructions))(*(_Instruction(*fields) for fields in instructions))
    return _Program(len(instructions), array)


# Made once: a process forked from this one applies the filter with three system calls.
_FILTER: Final = _compiled()
_ONE: Final = ctypes.c_ulong(1)


def confine() -> None:
    """Apply the filter to this process, for good; nothing where there is none for this machine. Raises
    OSError if the kernel refuses.
    """
    if _FILTER is not None:
        prctl(PR_SET_DUMPABLE, NOTHING)
        prctl(PR_SET_NO_NEW_PRIVS, _ONE)
        prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(_FILTER))
