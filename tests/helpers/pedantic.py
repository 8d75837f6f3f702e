"""What stands in for the fixture of pytest-benchmark in tests of the benchmarks."""

from __future__ import annotations


class Pedantic:
    """pytest-benchmark's fixture, as far as it is used."""

    stats = None

    def pedantic(self, function, rounds):
        self.stats = "timed"
        for _ in range(rounds):
            function()
