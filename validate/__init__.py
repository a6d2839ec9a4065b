"""mval: check an artifact against its source, and measure how much quality it lost."""
