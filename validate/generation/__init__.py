"""Let models generate text, and flag visible faults in it."""
