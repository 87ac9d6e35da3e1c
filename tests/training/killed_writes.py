"""Kills the writer of a checkpoint at the N-th border of its system calls, for N = 1, 2, ... until it comes to its end.

Usage: killed_writes.py FOLDER. Each attempt begins with two good checkpoints; the writer is traced as by a debugger.
Prints a line of JSON for each: whether it died, the newest good checkpoint, how many there are, and what is left later.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

from moe_asr.files import remove_leftovers
from moe_asr.training import checkpoint as ckpt

TRACEME, SYSCALL, SETOPTIONS, EXITKILL, SYSGOOD = 0, 24, 0x4200, 0x100000, 1
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def write(root: Path, step: int) -> None:
    state = {"milestone": False, "valid": None, "progress": {"step": step}}
    ckpt.write_checkpoint(ckpt.checkpoint_folder(root, step), {"w": torch.full((64,), float(step))}, {}, state)
    ckpt.prune_checkpoints(root, 2, [])


def attempt(root: Path, border: int) -> bool:
    """Whether a writer was killed at that border; otherwise it came to its end."""
    child = os.fork()
    if child == 0:
        libc.ptrace(TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        code = 1
        with contextlib.suppress(BaseException):
            write(root, 3)
            code = 0
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if not os.WIFSTOPPED(status) or libc.ptrace(SETOPTIONS, child, None, EXITKILL | SYSGOOD) != 0:
        raise OSError("this system lets no process be traced")
    for _ in range(border):
        libc.ptrace(SYSCALL, child, None, None)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the writer failed"
            return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main(folder: Path) -> None:
    border, killed = 0, True
    while killed:
        border += 1
        root = folder / str(border)
        for step in (1, 2):
            write(root, step)
        killed = attempt(root, border)
        said: list[str] = []
        newest = ckpt.newest_checkpoint(root, said.append)
        remove_leftovers(root)
        good = 0
        for path in ckpt.find_checkpoints(root):
            with contextlib.suppress(ValueError):
                ckpt.verify_checkpoint(path)
                good += 1
        write(root, 4)  # what is left does not stand in the way
        left = sorted(path.name for path in root.iterdir())
        print(json.dumps([killed, newest.name, good, said, left]), flush=True)
        shutil.rmtree(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
