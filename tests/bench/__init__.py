"""Measurements, each a program; none is part of the test suite, nothing is asserted.

Run one with `python -m tests.bench NAME`; without a name, it says what there is. Each
prints a Markdown table that the manual can take as it is. Only the ratios mean something
elsewhere: seconds are those of one machine, in one run.
"""
