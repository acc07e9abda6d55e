"""Everything about data: datasets prepared, found, checked and read, and their tokenizers."""
