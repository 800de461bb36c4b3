"""What runs say: loss curves and tables."""
