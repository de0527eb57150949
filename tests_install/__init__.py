"""Wheel and sdist: what is in them, and what they do once installed.

`make test-install` runs these tests; plain `make test` does not: pip fetches the
dependencies twice, which takes a minute.
"""
