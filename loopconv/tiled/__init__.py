"""Room 2: the three contractions as loops over register tiles; README.md says how to read them."""
