"""Frames as they come, for hours: capture, a bounded queue, the loop, and where results go.

Bounded in memory; a sink that fails is dropped and counted while the network goes on.
"""
