"""The laboratory: measures octvideo, and is no part of it."""

import sys
from pathlib import Path

# So that its programs run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
