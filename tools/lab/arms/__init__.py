"""Trains and compares a network's three arms."""
