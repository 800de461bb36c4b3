"""Analysis of finished runs: loss curves and pictures."""
