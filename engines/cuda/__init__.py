"""NVIDIA GPUs without a framework: the driver, devices by three packages, one kernel of our own.

Everything can be imported where there is no GPU; what is missing is said when it is opened.
"""
