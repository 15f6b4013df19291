"""Package data: the quickstart model, its sums, and a small math set (make_quickstart.py)."""
