"""Freed memory is kept, and given back: counted in page faults, by the system."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from nonesuch.train.memory import keep

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(1 << 24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep(True)
faults()
kept = faults()
assert keep(False)
print(kept, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of the GNU C library")
def test_kept_memory_is_not_mapped_anew():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    said = subprocess.run([sys.executable, "-c", FAULTS], env=clean, capture_output=True, text=True, check=True).stdout
    kept, given_back = map(int, said.split())
    assert kept < 100
    assert given_back > 200  # ten times 64 MB are 163,840 pages, or 320 where the system maps large ones


def test_a_users_own_settings_stay(monkeypatch: pytest.MonkeyPatch):
    from nonesuch.train.memory import keep

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep()
