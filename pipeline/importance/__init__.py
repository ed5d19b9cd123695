"""How much each block matters, how many go, and which: criteria, the sweep, cuts and choosing."""
