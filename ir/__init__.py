"""The levels of tcc: cascade (what), mapping (how), with text, verifier and interpreter for each."""
