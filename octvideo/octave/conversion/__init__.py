"""How an ordinary network becomes an octave one."""
