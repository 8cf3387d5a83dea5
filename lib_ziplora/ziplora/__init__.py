"""The algorithm: samples, objective, low-rank branches and the loop; no files, no hosts."""
