"""Measurements of this project: `python -m benchmarks` lists them.

A benchmark is a module with four names: `NEEDS` says what it takes, `QUICK` are the settings of its
short form, `options` adds its own to a parser, and `measure` returns what it found.
"""
