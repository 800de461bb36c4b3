"""Files that an export copies beside the weights. None of them needs this package, or PAX."""
