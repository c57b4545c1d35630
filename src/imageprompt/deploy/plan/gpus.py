"""Graphics cards: their memory, and what they compute at best, by their makers' data sheets.

16-bit figures are those of matrix products with sums in float32, without sparsity. This machine's
CPU is measured in such products.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from imageprompt.core.errors import OptionError


@dataclass(frozen=True)
class Gpu:
    """Memory in GiB; operations in 10^12 a second."""

    name: str
    memory: float
    half: float | None
    """Of 16-bit matrix products; None if nothing but the memory is known."""
    single: float | None
    """In float32."""
    on_cpu: bool = False

    def speed(self, dtype: str) -> float | None:
        """At a precision, in operations a second."""
        found = self.single if dtype == "float32" else self.half
        return None if found is None else found * 1e12


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 15, 65, 8.1),
        Gpu("V100", 16, 125, 15.7),
        Gpu("V100 32GB", 32, 125, 15.7),
        Gpu("TITAN RTX", 24, 130, 16.3),
        Gpu("RTX 2080 Ti", 11, 54, 13.4),
        Gpu("RTX 3060", 12, 25, 12.7),
        Gpu("RTX 3070", 8, 41, 20.3),
        Gpu("RTX 3080", 10, 60, 29.8),
        Gpu("RTX 3090", 24, 71, 35.6),
        Gpu("RTX 4060", 8, 30, 15.1),
        Gpu("RTX 4060 Ti 16GB", 16, 44, 22.1),
        Gpu("RTX 4070", 12, 58, 29.1),
        Gpu("RTX 4080", 16, 97, 48.7),
        Gpu("RTX 4090", 24, 165, 82.6),
        Gpu("RTX 5090", 32, 210, 104.8),
        Gpu("RTX A6000", 48, 155, 38.7),
        Gpu("RTX 6000 Ada", 48, 364, 91.1),
        Gpu("A10", 24, 125, 31.2),
        Gpu("A100", 40, 312, 19.5),
        Gpu("A100 80GB", 80, 312, 19.5),
        Gpu("L4", 24, 121, 30.3),
        Gpu("L40S", 48, 362, 91.6),
        Gpu("H100", 80, 989, 66.9),
        Gpu("H200", 141, 989, 66.9),
    )
}
ASSUMED = GPUS["RTX 4090"]
"""The card that times are told for if none is named."""

_SIDE = 1024
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)", re.IGNORECASE)


def gpu_of(text: str) -> Gpu:
    """A card by name in any spelling, by its memory ("12GB"), or "cpu": this machine's.

    Raises OptionError.
    """
    if text.strip().lower() == "cpu":
        return this_cpu()
    memory = _MEMORY.fullmatch(text.strip())
    if memory is not None:
        return Gpu(text.strip(), float(memory[1]), None, None)
    names = {_plain(name): gpu for name, gpu in GPUS.items()}
    wanted = _plain(text)
    if wanted in names:
        return names[wanted]
    near = [name for name in names if wanted and wanted in name]
    near = near or get_close_matches(wanted, names, n=1, cutoff=0.5)
    raise OptionError(
        f"GPU {text!r}",
        reason="its memory and speed are not known here",
        hint=(f"Did you mean {names[near[0]].name!r}? " if near else "")
        + "Its memory is enough: --gpu 12GB.",
    )


def this_cpu() -> Gpu:
    """This machine's main memory, and the speed of its CPU with the threads that torch uses."""
    import torch

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    half, single = (_speed(dtype) / 1e12 for dtype in (torch.bfloat16, torch.float32))
    return Gpu("this CPU", round(pages / 2**30, 1), half, single, on_cpu=True)


def _speed(dtype: Any) -> float:
    """Operations a second in the best of five matrix products, by CPU time: others may run too."""
    import torch

    factors = torch.randn(2, _SIDE, _SIDE).to(dtype)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        factors[0] @ factors[1]
        seconds.append(time.process_time() - start)
    return 2 * _SIDE**3 * torch.get_num_threads() / min(seconds)


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|[\s_-]", "", name.lower())
