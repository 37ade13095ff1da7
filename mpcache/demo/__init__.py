"""The demonstration: private day sheets, a small model trained on them, and its training."""

from pathlib import Path

DEMO_MODEL = Path(__file__).resolve().parent / "model"
"""The trained model's folder; README.md there is its card."""
DEMO_PROMPT = DEMO_MODEL / "daysheet_512.txt"
"""A day sheet of 512 tokens that ends in a question."""
