"""The benchmark suite: cost and quality of every cache policy, alone, over real processes, and as a report."""
