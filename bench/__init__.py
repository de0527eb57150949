"""Benchmarks: what the program costs, measured on its real parts. See README.md beside this file."""
