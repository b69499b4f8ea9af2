"""What a run shows: a live display, a timeline for Perfetto, a report. Nothing is imported until it is used."""
