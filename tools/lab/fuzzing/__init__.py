"""Damages videos and reads them."""
