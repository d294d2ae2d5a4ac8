"""What a processor does: whole octave layers and ordinary convolutions by C++ of our own."""
