"""What a run shows of itself: the live display, the timeline, the report."""
