"""What a benchmark leaves behind: records, tables of them, ranges."""
