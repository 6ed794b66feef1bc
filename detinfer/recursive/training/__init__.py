"""How the weights of a tiny recursive model are made: deep supervision on puzzles of our own."""
