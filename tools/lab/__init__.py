"""The laboratory: measures octvideo, and is no part of it."""
