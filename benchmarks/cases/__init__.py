"""What is measured: each kind of case with its records' fields and table."""
