"""What is learned from watching a run, derived from one file of records."""
