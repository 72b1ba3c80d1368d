"""Adaptation methods, one per file, behind one small interface (torch)."""
