import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import hostile`


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Thousands of small files, none of which has to survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
