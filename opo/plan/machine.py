"""What a plan has to fit into: the memory of each GPU, or of the machine where there is none."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CONTEXT = 0.5 * GIB  # of CUDA and its libraries on a GPU, about


@dataclass(frozen=True)
class Machine:
    """The devices that ranks run on. On the CPU all ranks share one memory."""

    kind: str  # cpu or cuda
    name: str
    devices: int
    bytes: float  # of each device

    @classmethod
    def found(cls, device: str = "auto") -> "Machine":
        """This machine, its GPUs where a run on `device` would use them."""
        count = torch.cuda.device_count() if device != "cpu" else 0
        if count:
            about = torch.cuda.get_device_properties(0)
            return cls("cuda", about.name, count, float(about.total_memory))
        return cls("cpu", f"{os.cpu_count()} CPU cores", 1, float(main_memory()))

    def fits(self, needed: float, ranks: int) -> bool:
        """Whether so many ranks of so many bytes run here at once."""
        if self.kind == "cpu":
            return needed * ranks <= self.bytes
        return needed <= self.bytes and ranks <= self.devices

    @property
    def memory_text(self) -> str:
        """What there is, in words."""
        gib = f"{self.bytes / GIB:.0f} GiB"
        return f"{gib} of memory" if self.kind == "cpu" else f"{self.devices} x {self.name} with {gib}"


def main_memory() -> int:
    """Bytes of this machine's memory, or of the part of it that its container may use."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, CGROUP_LIMITS):
        text = file.read_text().strip() if file.is_file() else ""
        limits += [int(text)] if text.isdecimal() else []
    return min(limits)


def process_bytes() -> int:
    """What this process holds now: Python, torch, transformers and what they have loaded."""
    status = Path("/proc/self/statm")
    if not status.is_file():  # not Linux
        return int(0.5 * GIB)
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
