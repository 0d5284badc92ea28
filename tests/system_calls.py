"""Makes the kernel refuse a system call to this process, as storage without locks or a failing disk does.

A filter of Linux (seccomp) answers the call with an error number before it is made: what Python, HDF5 and any other
library of the process then do is what they do on such storage. A filter cannot be taken back, so it belongs in a
process of its own.
"""

import ctypes
import platform
import sys

_NUMBERS = {
    "x86_64": {"flock": 73, "pread64": 17, "openat": 257},
    "aarch64": {"flock": 32, "pread64": 67, "openat": 56},
}
CAN_REFUSE = sys.platform == "linux" and platform.machine() in _NUMBERS
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h
_OFFSET_OF_FOURTH = 40  # of the fourth argument, in struct seccomp_data


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def refuse(call: str, error: int, *, from_offset: int = 0) -> None:
    """From now on each `call` of this process fails with `error`; pread64 only at `from_offset` or beyond."""
    steps = [
        (_LOAD, 0, 0, 0),
        (_JUMP_EQUAL, 0, 3, _NUMBERS[platform.machine()][call]),
        (_LOAD, 0, 0, _OFFSET_OF_FOURTH),
        (_JUMP_AT_LEAST, 0, 1, from_offset),
        (_RETURN, 0, 0, _ERRNO | error),
        (_RETURN, 0, 0, _ALLOW),
    ]
    instructions = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    library = ctypes.CDLL(None, use_errno=True)
    for option, *arguments in ((38, 1, 0), (22, 2, ctypes.byref(_Filter(len(steps), instructions)))):  # sys/prctl.h
        if library.prctl(option, *arguments, 0, 0):
            raise OSError(ctypes.get_errno(), "the kernel takes no filter")
